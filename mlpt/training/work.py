"""What the step loop asks of the work that it does: pretraining, or fine-tuning on one task or on many."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mlpt.models.hooks import StepHook
from mlpt.storage.checkpoint import Checkpoints
from mlpt.training.group import Group
from mlpt.training.schedule import ScheduleConfig
from mlpt.training.tracker import Tracker


@dataclass(frozen=True)
class Pace:
    """How long a run is and what is due when, in optimiser steps; 0: never.

    rate, clip  the schedule's peak, and the largest gradient norm (0: no clipping).
    ends_with   what is due after the last step, whatever its number.
    """

    steps: int
    rate: float
    schedule: ScheduleConfig
    clip: float
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    ends_with: Literal["evaluation", "checkpoint"]


class MicroBatch(Protocol):
    """One forward and backward pass of a step; `slot`, its number, says which rank makes it."""

    @property
    def slot(self) -> int: ...


M = TypeVar("M", bound=MicroBatch)
Tensors = Mapping[str, Mapping[str, Tensor]]  # by file of a checkpoint and name


class Work(ABC, Generic[M]):
    """What a run trains on and how that is measured. The loop asks on every rank, in the order of these methods.

    model      with `optimizer` over its parameters, and the `scaler` of its loss.
    hooks      what else changes the model between steps.
    has_ended  set where the run ends before its last step.
    """

    group: Group
    checkpoints: Checkpoints
    tracker: Tracker
    model: nn.Module
    optimizer: Any
    scaler: torch.amp.GradScaler
    pace: Pace
    hooks: Sequence[StepHook] = ()
    has_ended: bool = False

    def start(self, step: int) -> None:
        """Training begins, or goes on, at `step`; all that was saved is in place."""

    def adopt(self, step: int) -> None:
        """Put what counts from `step` on into force, before the model is measured and saved."""

    @abstractmethod
    def evaluate(self, step: int) -> bool:
        """Score the model; True if a checkpoint must keep it, for it has never been this good."""

    @abstractmethod
    def state(self, step: int) -> tuple[Mapping[str, Any], Tensors]:
        """What a checkpoint must hold besides model and optimiser: plain JSON values, and tensors; rank 0's counts."""

    @abstractmethod
    def load_state(self, values: Mapping[str, Any], tensors: Tensors) -> None:
        """The inverse of `state`, out of all that the checkpoint holds."""

    def show(self, step: int) -> None:
        """`step` steps are done, with all that was due after them."""

    def launch(self, step: int, rate: float) -> None:
        """Begin what must see the model as the coming step, with this learning rate, finds it."""

    @abstractmethod
    def plan(self, step: int) -> Sequence[M]:
        """All micro-batches of the coming step, the same on every rank."""

    @abstractmethod
    def passes(self, step: int) -> AbstractContextManager[None]:
        """This rank's passes run inside; after it the gradients are those of the whole step."""

    def one_pass(self, micro_batch: M, last: bool) -> AbstractContextManager[None]:
        """A forward and backward pass runs inside, the `last` that this rank makes in the step or not."""
        return nullcontext()

    @abstractmethod
    def noise(self, step: int, micro_batch: M) -> int:
        """The seed of a pass's dropout."""

    @abstractmethod
    def loss_of(self, micro_batch: M, after: M | None) -> Tensor:
        """Scalar loss, times its share of the step. `after` is what this rank makes next in the step, if anything."""

    def again(self) -> None:
        """The passes of this step are made once more: the losses so far don't count."""

    @abstractmethod
    def examine(self, step: int, losses: Sequence[Tensor], norm: Tensor) -> tuple[bool, bool]:
        """Whether the step may be taken, and whether the run shall stop after it: the same on every rank.

        losses  of `loss_of`, on this rank. norm: of the whole gradient before clipping, on the device.
        """

    @abstractmethod
    def log(self, step: int, rate: float) -> None:
        """Record how training went until `step` steps were done; the next one's learning rate is `rate`."""

    def finish(self, step: int) -> None:
        """Training has come to its end."""

    def close(self) -> None:
        """The run has ended, one way or another."""
