"""Notices silent corruption: memory or a processor that changes bits, of which nothing else would tell.

`Replay` runs a step's forward and backward again, which is exact because randomness is addressed, and compares bits
before the optimiser sees them. `check_ranks` compares what all ranks should hold alike.
"""

import platform
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mlpt.errors import UserError
from mlpt.models.sharded import is_part
from mlpt.storage.checkpoint import Checkpoints
from mlpt.training.group import Group
from mlpt.training.state import model_tensors, optimizer_tensors

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digests(tensors: Iterable[Tensor]) -> Tensor:
    """(n,) int64 on the CPU: of each tensor the sum of its bits, read as integers, times 1, 3, 5, ..., modulo 2^64.

    A flipped bit adds or takes an odd multiple of a power of two below 2^64, so it always changes the sum.
    """
    sums = []
    for one in tensors:
        bits = one.detach().contiguous().view(-1).view(_INTEGERS[one.element_size()]).to(torch.int64)
        sums.append((bits * torch.arange(1, 2 * len(bits), 2, device=bits.device)).sum())
    return torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)


def check_ranks(
    step: int, model: nn.Module, optimizer: torch.optim.Optimizer, group: Group, checkpoints: Checkpoints
) -> None:
    """Raise `UserError` where ranks differ in a weight or a moment of the optimiser. Every rank must join."""
    if group.world == 1:
        return
    named = {**model_tensors(model), **optimizer_tensors(model, optimizer)}
    named = {name: one for name, one in named.items() if not is_part(one)}  # of what is shared out each has its own
    found = group.gather(digests(named.values()).tolist())
    differing = [name for name, *each in zip(named, *found, strict=True) if len(set(each)) > 1]
    if differing:
        raise UserError(
            f"the ranks differ in {differing[0]} at step {step} ({len(differing)} of {len(named)} tensors): one of "
            "them has corrupted it, or they run on processors of different kinds; go on by "
            f"`{checkpoints.way_on()}` on other machines, or with runtime.compare_ranks=false"
        )


class Replay:
    """Repeats every `every`-th step's passes and compares them; None: never.

    A first pass that two others contradict is replaced by them, with a warning. Raises `UserError` where weights change
    within a step, and where no two passes agree.
    """

    def __init__(
        self, every: int | None, model: nn.Module, group: Group, checkpoints: Checkpoints, warn: Callable[[str], None]
    ):
        self._every = every
        self._model = model
        self._group = group
        self._checkpoints = checkpoints
        self._warn = warn
        self._weights = torch.zeros(0)

    def begin(self, step: int) -> None:
        """Remember the weights that the step's passes start from."""
        if self._is_due(step):
            self._weights = digests(self._model.parameters())

    def check(self, step: int, losses: list[Tensor], again: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Compare the passes of `step`, where it is one that is repeated, with those that `again` makes.

        losses  the passes' losses; `again` returns those of its own, and leaves its gradients in the model. Returns
                those of the last passes that were made: they and their gradients are right.
        """
        if not self._is_due(step):
            return losses
        first, made = self._bits(losses), again()
        second = self._bits(made)
        self._check_weights(step)
        if not self._group.any(not first.equal(second))[0]:
            return made
        made = again()
        third = self._bits(made)
        self._check_weights(step)
        if self._group.any(not third.equal(second))[0]:
            raise UserError(
                f"step {step} gives other gradients each time on {platform.node()}: its memory or processor is broken, "
                f"or a kernel is not deterministic; go on by `{self._checkpoints.way_on()}` on another machine"
            )
        self._warn(
            f"the gradients of step {step} were corrupted on {platform.node()}, and are made anew; should this come "
            "again, its memory or processor is broken"
        )
        return made

    def _is_due(self, step: int) -> bool:
        return self._every is not None and step % self._every == 0

    def _bits(self, losses: list[Tensor]) -> Tensor:
        gradients = [one.grad for one in self._model.parameters() if one.grad is not None]
        return digests([*losses, *gradients])

    def _check_weights(self, step: int) -> None:
        changed = ~digests(self._model.parameters()).eq(self._weights)
        if self._group.any(changed.any())[0]:
            names = [name for name, _ in self._model.named_parameters()]
            found = names[int(changed.nonzero()[0])] if changed.any() else "a weight of another rank"
            raise UserError(
                f"{found} has changed by itself in step {step} on {platform.node()}: its memory is broken; nothing was "
                f"saved since, go on by `{self._checkpoints.way_on()}` on another machine"
            )
