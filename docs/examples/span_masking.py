"""An objective in one file: masked language modelling of whole spans.

mlpt pretrain "objectives={mlm: {}, spans: {type: span_masking:SpanMasking, length: 4}}"
"""

import torch
from pydantic import Field

from mlpt.data.batch import Batch
from mlpt.objectives.base import Inputs
from mlpt.objectives.mlm import MaskingConfig, masked_inputs
from mlpt.objectives.prediction import TokenPrediction
from mlpt.objectives.smoothing import SmoothingConfig


class SpanMasking(TokenPrediction):
    """Predict spans of `length` tokens, so many that about `probability` of the text is hidden."""

    name = "spans"

    class Config(MaskingConfig):
        """length       tokens of a span.
        probability  share of the positions that are chosen.
        """

        length: int = Field(default=3, ge=1)
        probability: float = Field(default=0.15, gt=0, lt=1)
        smoothing: SmoothingConfig = SmoothingConfig()

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        tokens = batch.tokens  # (batch, length)
        # A position is chosen where one of the last `length` positions begins a span.
        begins = torch.rand(tokens.shape, generator=generator) < 1 - (1 - self.config.probability) ** (
            1 / self.config.length
        )
        chosen = begins.clone()
        for distance in range(1, self.config.length):
            chosen[:, distance:] |= begins[:, :-distance]
        fate = torch.rand(tokens.shape, generator=generator)
        inputs = masked_inputs(tokens, chosen, fate, self.vocabulary, self.config, generator)
        return self.smoothed(inputs, batch)
