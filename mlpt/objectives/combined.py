"""Masked language modelling and distillation of the same corrupted texts, as a weighted sum (TAMT-MLM+KD).

Liu et al., NAACL 2022: L = L_MLM + L_rep. Unlike a mixture of the two objectives, both losses see the same inputs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.base import Inputs, Objective
from mlpt.objectives.distill import Distillation
from mlpt.objectives.mlm import MaskedLM
from mlpt.settings import Settings


class Combined(Objective):
    """mlm_weight * L_MLM + distill_weight * L_distill on the inputs that masked language modelling makes."""

    name = "combined"

    class Config(Settings):
        """mlm, distill  settings of the two objectives (`distill.corruption` has no part here)."""

        mlm: MaskedLM.Config = MaskedLM.Config()
        distill: Distillation.Config = Distillation.Config()
        mlm_weight: float = Field(1.0, ge=0, description="of the loss of mlm in the sum")
        distill_weight: float = Field(1.0, ge=0, description="of the loss of distill in the sum")

    def __init__(self, config: Config, vocabulary: Vocabulary):
        super().__init__(config, vocabulary)
        self._mlm = MaskedLM(config.mlm, vocabulary)
        self._distill = Distillation(config.distill, vocabulary)

    @classmethod
    def saved_models(cls, settings: Mapping[str, Any]) -> list[str]:
        return Distillation.saved_models(settings.get("distill") or {})

    @classmethod
    def refuses(cls, settings: Mapping[str, Any], config: Any) -> str | None:
        return Distillation.refuses(settings.get("distill") or {}, config)

    def prepare(self, model: Any) -> None:
        self._mlm.prepare(model)
        self._distill.prepare(model)

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        return self._mlm.corrupt(batch, generator)

    def capacity(self, tokens: int) -> int:
        return self._mlm.capacity(tokens)

    def example(self, batch: Batch, generator: torch.Generator) -> Inputs:
        return self.corrupt(batch, generator)

    def loss(self, model: Any, inputs: Inputs) -> Tensor:
        mlm, distill = self._mlm.loss(model, inputs), self._distill.loss(model, inputs)
        return self.config.mlm_weight * mlm + self.config.distill_weight * distill
