"""Losses of a run as it goes: summed on the device, shared between ranks only when somebody wants to know."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlpt.errors import UserError
from mlpt.training.group import Group


@dataclass(frozen=True)
class Seen:
    """What was seen of one objective: summed loss in nats, micro-batches, and how many steps' worth was drawn."""

    loss: float = 0.0
    micro_batches: int = 0
    steps: float = 0.0

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.loss + other.loss, self.micro_batches + other.micro_batches, self.steps + other.steps)

    @property
    def mean(self) -> float:
        """Mean loss in nats."""
        return self.loss / self.micro_batches


class Meter:
    """Losses by objective since the last `take`. Adding never waits for the device."""

    def __init__(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._seen: dict[str, Seen] = {}

    def add(self, name: str, loss: Tensor, steps: float) -> None:
        """Count one micro-batch of `name` with the scalar `loss`; it is `steps` of a step's training."""
        value = loss.detach().double()
        self._losses[name] = self._losses[name] + value if name in self._losses else value
        self._seen[name] = self._seen.get(name, Seen()) + Seen(0.0, 1, steps)

    def take(self, names: Iterable[str], group: Group) -> dict[str, Seen]:
        """What all ranks saw of each objective that was drawn; starts anew. Every rank must call it.

        Raises `UserError` when a loss is not finite.
        """
        ordered = sorted(names)
        table = torch.zeros(len(ordered), 3, dtype=torch.float64)
        for at, name in enumerate(ordered):
            if name in self._seen:
                seen = self._seen[name]
                table[at] = torch.tensor([self._losses[name].item(), seen.micro_batches, seen.steps])
        self._losses, self._seen = {}, {}
        taken = {
            name: Seen(loss, int(count), steps)
            for name, (loss, count, steps) in zip(ordered, group.sum(table).tolist(), strict=True)
        }
        for name, seen in taken.items():
            if not math.isfinite(seen.loss):
                raise UserError(
                    f"the {name} loss is not finite; lower train.optimizer.lr, or resume with train.precision=float32"
                )
        return {name: seen for name, seen in taken.items() if seen.micro_batches}


def add_up(into: dict[str, Seen], more: Mapping[str, Seen]) -> None:
    """Add what was seen, by name."""
    for name, seen in more.items():
        into[name] = into.get(name, Seen()) + seen


def to_json(seen: Mapping[str, Seen]) -> dict[str, list[float]]:
    """Plain lists, for a checkpoint."""
    return {name: [one.loss, one.micro_batches, one.steps] for name, one in seen.items()}


def from_json(values: Mapping[str, list[float]]) -> dict[str, Seen]:
    """The inverse of `to_json`."""
    return {name: Seen(loss, int(count), steps) for name, (loss, count, steps) in values.items()}
