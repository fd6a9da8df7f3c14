"""Training pairs that a teacher writes: drawing them, their losses, and what they look like (MetaLMO, Shen 2021).

A pair is an input sequence and a target sequence of the same length as the text that the teacher read.
"""

import torch
from torch import Tensor

from mlpt.models.soft import token_cross_entropy
from mlpt.models.teacher import Pair, Teacher


def draw_pair(logits: Pair, tokens: Tensor, pad: int, generator: torch.Generator) -> Pair:
    """One hard sample of each sequence, (batch, length) int64: every token on its own, at temperature 1.

    tokens     (batch, length) the text that was read; its padding stays padding in both sequences.
    generator  on the CPU, whatever the device of the logits: the same state and logits draw the same tokens, so that
               whoever has the teacher can redraw a sample. The inputs are drawn before the targets.
    """
    real = tokens != pad
    return Pair(*(torch.where(real, draw_tokens(one, generator), pad) for one in logits))


def draw_tokens(logits: Tensor, generator: torch.Generator) -> Tensor:
    """(...) int64 drawn from softmax(`logits` (..., vocabulary)) by inverting the cumulative distribution."""
    shape = logits.shape[:-1]
    uniform = torch.rand(shape, generator=generator).to(logits.device)
    cumulative = logits.detach().float().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[..., -1]
    # Below the total, whatever rounding did: then a token without mass is never drawn.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point.unsqueeze(-1), right=True).squeeze(-1)


def soft_pair(logits: Pair) -> Pair:
    """Both sequences as distributions over the vocabulary, (batch, length, vocabulary), with their graph."""
    return Pair(logits.inputs.softmax(dim=-1), logits.targets.softmax(dim=-1))


def pair_loss(logits: Pair, pair: Pair, keep: Pair) -> Tensor:
    """Mean of the two cross entropies of a pair: a scalar in nats.

    pair  (batch, length) int64 tokens of both sequences.
    keep  (batch, length) bool for both: the positions that count.
    """
    losses = [token_cross_entropy(*one) for one in zip(logits, pair, keep, strict=True)]
    return 0.5 * losses[0] + 0.5 * losses[1]


def auxiliary_loss(teacher: Teacher, tokens: Tensor, masked: Tensor, labels: Tensor, pad: int) -> Tensor:
    """What keeps a teacher near masked language modelling: a scalar in nats, the sum of two pair losses.

    tokens  (batch, length) text; its first token is read as that of `masked`, the task token of masked modelling.
    masked  (batch, length) the same text corrupted.
    labels  (batch, length) the original tokens where they are to be predicted, `pad` elsewhere.

    From the text, the teacher is to write the corrupted text as input and the text as target; from the corrupted text,
    itself as input and the original tokens as targets where they are to be predicted. (Corrupted text and labels are
    never asked for together from the text: the teacher writes each token on its own, and those hang together.)
    """
    text = torch.cat([masked[:, :1], tokens[:, 1:]], dim=1)
    real = tokens != pad
    logits = teacher(torch.cat([text, masked]), torch.cat([real, real]))
    of_text, of_masked = (Pair(*halves) for halves in zip(*(one.chunk(2) for one in logits), strict=True))
    from_text = pair_loss(of_text, Pair(masked, text), Pair(real, real))
    from_masked = pair_loss(of_masked, Pair(masked, labels), Pair(real, labels != pad))
    return from_text + from_masked


def counted_positions(inputs: Tensor, labels: Tensor, pad: int, by_inputs: bool = False) -> Tensor:
    """(batch, length) bool: the positions of a labelled batch that its loss counts.

    by_inputs  published: all positions of the input that are not padding. In masked language modelling that teaches
               the student to predict padding at every position that was not corrupted. False: those with a label.
    """
    return (inputs if by_inputs else labels) != pad


@torch.no_grad()
def describe_pairs(logits: Pair, tokens: Tensor, pad: int, mask: int) -> dict[str, float]:
    """What a teacher writes, as means over the positions of text: figures that show a collapse.

    entropy_inputs, entropy_targets  nats a token.
    mask_share                       mass of the mask token in the inputs.
    copied_inputs, copied_targets    mass of the token that the text has there.
    one_token_inputs, one_token_targets  mass of the token that is written most, whatever the text.
    """
    real = tokens != pad
    found = {}
    for name, one in zip(Pair._fields, logits, strict=True):
        logs = one[real].float().log_softmax(dim=-1)  # (n, vocabulary)
        shares = logs.exp()
        found[f"entropy_{name}"] = -torch.where(shares > 0, shares * logs, 0.0).sum(dim=-1).mean().item()
        found[f"copied_{name}"] = shares.gather(1, tokens[real].unsqueeze(1)).mean().item()
        found[f"one_token_{name}"] = shares.mean(dim=0).max().item()
        if name == "inputs":
            found["mask_share"] = shares[:, mask].mean().item()
    return found
