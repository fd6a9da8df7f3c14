"""Step hooks: what may happen between two optimiser steps without being a second training loop.

Threshold resets of mask training and iterative pruning hang here; see `mlpt.sparsity.hooks`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class StepHook(Protocol):
    """Runs on every rank, at the same steps, deterministically. `step` counts the optimiser steps done."""

    name: str

    def before_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called before the forward pass of step `step` (0-based)."""

    def after_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called after the update; `step` is now the number of steps done."""

    def as_saved(self, model: nn.Module) -> AbstractContextManager[None]:
        """While the block lasts, `model` is what is measured and given out; after it, all is as it was before.

        Training goes on from a checkpoint's own tensors, which are taken outside: to save changes nothing.
        """

    def save(self, step: int, model: nn.Module) -> None:
        """Write what lies beside checkpoint `step`; called inside `as_saved`."""

    def schedule_step(self, step: int) -> int:
        """The step that the learning-rate schedule sees; a hook that restarts the schedule returns a smaller one."""

    def alters(self, parameter: str) -> bool:
        """Whether it may change the parameter of that name though no gradient reaches it; the meta-learner is then sent
        its values.
        """

    def state(self) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """Plain JSON values and tensors that a resumed run needs."""

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""


class NoHook:
    """A hook that does nothing; real ones inherit from it and define what they need."""

    name = "none"

    def before_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pass

    def after_step(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pass

    def as_saved(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def save(self, step: int, model: nn.Module) -> None:
        pass

    def schedule_step(self, step: int) -> int:
        return step

    def alters(self, parameter: str) -> bool:
        return True  # unless a hook says otherwise: what is sent for nothing costs time, what is missing is wrong

    def state(self) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        return {}, {}

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        pass


@contextmanager
def all_as_saved(hooks: Iterable[StepHook], model: nn.Module) -> Iterator[None]:
    """While the block lasts, `model` is what is measured and given out, by all `hooks`; see `StepHook.as_saved`."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook.as_saved(model))
        yield
