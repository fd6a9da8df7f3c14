"""How hard a token is, from the model's probabilities at its position. Every score is >= 0, and larger is harder.

`loss` at 0.1 nats is what SE4PLMs publishes (A1, step 4 of the specification: hard iff the loss is strictly above).
`confidence`, `entropy` and `margin` are the uncertainty measures of active learning (Settles, 2009, section 3.1);
`pseudo_loss` is a token's term of the pseudo-log-likelihood (Salazar et al., 2020).
"""

import math
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["loss", "correctness", "confidence", "entropy", "margin", "pseudo_loss", "random"]

UNMASKED = ("loss", "correctness", "confidence", "entropy", "margin")  # from one pass over the text as it is

# A token is hard above it. `loss`: published. `confidence`, `margin`: as sure as that loss asks for. `random`: 15 %.
THRESHOLDS: dict[Metric, float] = {
    "loss": 0.1,
    "correctness": 0.5,
    "confidence": 1 - math.exp(-0.1),
    "entropy": 0.5,
    "margin": 2 - 2 * math.exp(-0.1),
    "pseudo_loss": 2.0,
    "random": 0.85,
}


def token_score(log_probabilities: Tensor, tokens: Tensor, metric: Metric) -> Tensor:
    """(n,) float32 scores of `tokens` (n,) int64 under `log_probabilities` (n, vocabulary) float32, in nats.

    loss, pseudo_loss  -log p(token).
    correctness        1 where another token is likelier, 0 where the token itself is the likeliest.
    confidence         1 - the largest probability, whichever token has it.
    entropy            of the whole distribution.
    margin             1 - (the largest probability - the second largest).
    """
    if metric in ("loss", "pseudo_loss"):
        return -log_probabilities.gather(1, tokens.unsqueeze(1)).squeeze(1)
    if metric == "correctness":
        return (log_probabilities.argmax(1) != tokens).float()
    if metric == "confidence":
        return 1 - log_probabilities.amax(1).exp()
    if metric == "entropy":
        return torch.special.entr(log_probabilities.exp()).sum(1)
    if metric == "margin":
        first, second = log_probabilities.topk(2, dim=1).values.exp().unbind(1)
        return 1 - (first - second)
    raise ValueError(f"'{metric}' is no function of a distribution")
