"""Masked language modelling where a guide says which positions are worth predicting.

The `emlm` branch of MOMETAS (Wu et al., 2022) and the guided masking of self-evolution learning: probability 0.5 on the
positions of a boolean guide, 0 elsewhere. Where MOMETAS's guide comes from is not published; `rare` is our invention.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.base import Inputs, Objective, PretrainingModel
from mlpt.objectives.mlm import MaskingConfig, masked_inputs, predicted_tokens_loss


class GuidedMaskedLM(Objective):
    """Predict tokens at positions that a guide marks."""

    name = "guided"

    class Config(MaskingConfig):
        """probability  chance of a marked position to be chosen.
        guide        `rare`: the rarest tokens of the text (see `rare_positions`); `all`: every position.
        rare_share   share of the non-special positions that `rare` marks (more where counts tie). The defaults,
                     0.5 of 0.3, choose 15 % of the positions, as `mlm` does.
        """

        probability: float = Field(default=0.5, gt=0, le=1)
        guide: Literal["rare", "all"] = "rare"
        rare_share: float = Field(default=0.3, gt=0, le=1)

    def __init__(self, config: Any, vocabulary: Vocabulary, token_counts: Tensor | None = None):
        """token_counts: (vocabulary,) how often each token occurs in the corpus; None: counted in each micro-batch."""
        super().__init__(config, vocabulary)
        self.token_counts = token_counts

    def corrupt(self, tokens: Tensor, generator: torch.Generator) -> Inputs:
        return self.corrupt_at(tokens, self.guide(tokens), generator)

    def corrupt_at(self, tokens: Tensor, guide: Tensor, generator: torch.Generator) -> Inputs:
        """`corrupt` with the guide given: (batch, length) bool, True where a position may be chosen."""
        fate = torch.rand(tokens.shape, generator=generator) / self.config.probability
        return masked_inputs(tokens, guide & (fate < 1), fate, self.vocabulary, self.config, generator)

    def guide(self, tokens: Tensor) -> Tensor:
        """(batch, length) bool for `tokens` (batch, length): the positions that `config.guide` marks."""
        ordinary = ~self.vocabulary.is_special(tokens)
        if self.config.guide == "all":
            return ordinary
        counts = self.token_counts
        if counts is None:
            counts = torch.bincount(tokens.reshape(-1), minlength=self.vocabulary.size)
        return rare_positions(tokens, ordinary, counts, self.config.rare_share)

    def loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        return predicted_tokens_loss(model, inputs)


def rare_positions(tokens: Tensor, eligible: Tensor, counts: Tensor, share: float) -> Tensor:
    """The `share` of the `eligible` positions (batch, length, bool) whose token has the lowest `counts` (vocabulary,).

    Positions that tie with the last one marked are marked too.
    """
    count_here = counts[tokens]  # (batch, length)
    candidates = count_here[eligible]  # (m,)
    if len(candidates) == 0:
        return torch.zeros_like(eligible)
    last = candidates.kthvalue(max(1, round(share * len(candidates)))).values
    return eligible & (count_here <= last)
