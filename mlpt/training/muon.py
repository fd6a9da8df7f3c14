"""Muon for the encoder's matrices, AdamW for the rest (Jordan et al. 2024), as one optimiser.

Muon orthogonalises a matrix's momentum. With its update scaled to the root mean square of AdamW's (Liu et al. 2025,
Muon is Scalable for LLM Training, section 2.2) both take the same learning rate.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Two of torch's optimisers with common groups and state, so that schedules and checkpoints see one."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        self.parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices between embeddings and heads: those of linear layers of the encoder's body."""
    body = getattr(getattr(model, "backbone", model), "base_model", model)
    tables = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    found: dict[int, Any] = {
        id(one.weight): one.weight
        for one in body.modules()
        if isinstance(one, nn.Linear) and one.weight.requires_grad and id(one.weight) not in tables
    }
    return list(found.values())
