"""How uncertain the model is of candidate rows, at a fraction of the published cost.

The published step forwards every candidate in full precision, padded to 128 tokens, in whatever mode the model stands.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from mlpt.downstream.multitask.data import Collator
from mlpt.downstream.multitask.model import MultitaskModel
from mlpt.downstream.samplers import Row
from mlpt.settings import Settings
from mlpt.training.group import Group


class ScoringConfig(Settings):
    """precision   of the forward pass: `bf16` (default) or `float32` (published).
    dropout     `off` (default): a row's score depends on the row and the weights; `as_trained` (published): dropout is
                on except before the first step and after an evaluation.
    max_tokens  padded tokens in one forward pass, in which rows of similar length come together.
    """

    precision: Literal["bf16", "float32"] = "bf16"
    dropout: Literal["off", "as_trained"] = "off"
    max_tokens: int = Field(default=2048, gt=0)


class Scorer:
    """The score function that `MtUncertainty.batch` asks: candidates in, entropies in nats out.

    The ranks of a `group` share the passes; all of them must ask.
    """

    def __init__(self, config: ScoringConfig, model: MultitaskModel, collate: Collator, group: Group | None = None):
        self.config, self.model, self.collate, self.group = config, model, collate, group or Group()

    @torch.no_grad()
    def __call__(self, rows: Sequence[Row]) -> np.ndarray:
        """(n,) float64 entropies of `rows`. The model is left in the mode that it was found in."""
        device = next(self.model.parameters()).device
        training = self.model.training
        drops = training and self.config.dropout == "as_trained"
        self.model.train(drops)
        # Dropout goes on from one pass to the next, so that every rank makes all of them.
        rank, world = (0, 1) if drops else (self.group.rank, self.group.world)
        try:
            found = torch.zeros(len(rows), device=device)
            # One context for all passes: it casts each weight once.
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                for places in list(self.collate.chunks(rows, self.config.max_tokens))[rank::world]:
                    batch = self.collate([rows[place] for place in places]).to(device)
                    found[torch.from_numpy(places).to(device)] = self.model.entropies(batch)
        finally:
            self.model.train(training)
        return (found if drops else self.group.sum(found)).cpu().double().numpy()
