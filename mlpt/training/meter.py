"""Losses of a run as it goes: summed on the device, shared between ranks only when somebody wants to know."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mlpt.errors import UserError
from mlpt.training.group import Group


class Meter:
    """Sums of losses by objective since the last `take`. Adding never waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, loss: Tensor) -> None:
        """Count one micro-batch of `name` with the scalar `loss`."""
        value = loss.detach().double()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, names: Iterable[str], group: Group) -> dict[str, tuple[float, int]]:
        """(sum, count) over all ranks of each objective that was drawn, and start anew. Every rank must call it.

        Raises `UserError` when a loss is not finite.
        """
        ordered = sorted(names)
        table = torch.zeros(len(ordered), 2, dtype=torch.float64)
        for at, name in enumerate(ordered):
            if name in self._sums:
                table[at] = torch.tensor([self._sums[name].item(), self._counts[name]])
        self._sums, self._counts = {}, {}
        taken = dict(zip(ordered, group.sum(table).tolist(), strict=True))
        for name, (total, _) in taken.items():
            if not math.isfinite(total):
                raise UserError(
                    f"the {name} loss is not finite; lower train.optimizer.lr, or resume with train.precision=float32"
                )
        return {name: (total, int(count)) for name, (total, count) in taken.items() if count}


def add_up(into: dict[str, tuple[float, int]], more: Mapping[str, tuple[float, int]]) -> None:
    """Add (sum, count) pairs by name."""
    for name, (total, count) in more.items():
        old_total, old_count = into.get(name, (0.0, 0))
        into[name] = (old_total + total, old_count + count)


def means(pairs: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """Mean loss by name."""
    return {name: total / count for name, (total, count) in pairs.items()}
