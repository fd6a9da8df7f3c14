"""Losses of a run as it goes: kept on the device, shared between ranks only when somebody wants to know.

They are kept step by step and added up in the order of the steps, so that it changes no sum when somebody asks: a
checkpoint does, and a run that was saved must go on as one that was not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlpt.training.group import Group


@dataclass(frozen=True)
class Seen:
    """What was seen of one objective: summed loss in nats, micro-batches, and how many steps' worth was drawn."""

    loss: float = 0.0
    micro_batches: float = 0.0
    steps: float = 0.0

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.loss + other.loss, self.micro_batches + other.micro_batches, self.steps + other.steps)

    @property
    def mean(self) -> float | None:
        """Mean loss in nats; None where every micro-batch was skipped."""
        return self.loss / self.micro_batches if self.micro_batches else None


@dataclass
class _Row:
    """What one rank saw of one objective in one step; `loss` is a float64 scalar on the device."""

    loss: Tensor
    micro_batches: int
    steps: float


class Meter:
    """Losses by objective and step since the last `take`. Adding never waits for the device."""

    def __init__(self) -> None:
        self._open: dict[str, _Row] = {}  # the step under way
        self._closed: list[dict[str, _Row]] = []

    def add(self, name: str, loss: Tensor, steps: float) -> None:
        """Count one micro-batch of `name` with the scalar `loss`; it is `steps` of a step's training."""
        row = _Row(loss.detach().double(), 1, steps)
        if (before := self._open.get(name)) is not None:
            row = _Row(before.loss + row.loss, before.micro_batches + 1, before.steps + steps)
        self._open[name] = row

    def losses(self) -> dict[str, Tensor]:
        """Summed losses of the step under way, by objective: scalars on the device."""
        return {name: row.loss for name, row in self._open.items()}

    def reopen(self) -> None:
        """The step under way begins anew."""
        self._open = {}

    def close(self, skipped: bool = False) -> None:
        """End the step. Of a `skipped` one the draws count and the losses don't."""
        if skipped:
            self._open = {name: _Row(torch.zeros_like(row.loss), 0, row.steps) for name, row in self._open.items()}
        self._closed.append(self._open)
        self._open = {}

    def take(self, names: Iterable[str], group: Group) -> list[dict[str, Seen]]:
        """What all ranks saw of each objective that was drawn, step by step; starts anew. Every rank must call it."""
        if not self._closed:
            return []
        ordered = sorted(names)
        table = torch.zeros(len(self._closed), len(ordered), 3, dtype=torch.float64)
        places = [(at, ordered.index(name), row) for at, step in enumerate(self._closed) for name, row in step.items()]
        self._closed = []
        if places:
            losses = torch.stack([row.loss for _, _, row in places]).tolist()  # one transfer from the device
            for (at, column, row), loss in zip(places, losses, strict=True):
                table[at, column] = torch.tensor([loss, row.micro_batches, row.steps])
        named = [zip(ordered, rows, strict=True) for rows in group.sum(table).tolist()]
        return [{name: Seen(*row) for name, row in step if row[2]} for step in named]


def add_up(into: dict[str, Seen], more: Mapping[str, Seen]) -> None:
    """Add what was seen, by name."""
    for name, seen in more.items():
        into[name] = into.get(name, Seen()) + seen


def to_json(seen: Mapping[str, Seen]) -> dict[str, list[float]]:
    """Plain lists, for a checkpoint."""
    return {name: [one.loss, one.micro_batches, one.steps] for name, one in seen.items()}


def from_json(values: Mapping[str, list[float]]) -> dict[str, Seen]:
    """The inverse of `to_json`."""
    return {name: Seen(*one) for name, one in values.items()}
