"""The moving average that token-specific smoothing may refer to, kept up to date between steps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlpt.models.hooks import NoHook
from mlpt.objectives.prediction import TokenPrediction


class AverageReference(NoHook):
    """Moves the reference of one objective after every step, and keeps it in checkpoints."""

    def __init__(self, objective: TokenPrediction):
        if objective.reference is None:
            raise ValueError(f"'{objective.name}' keeps no reference")
        self.name = f"average-{objective.name}"
        self._reference = objective.reference

    def after_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._reference.update(model)

    def alters(self, parameter: str) -> bool:
        return False  # its copy is no part of the model

    def state(self) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        return {}, self._reference.state()

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._reference.load_state(tensors)
