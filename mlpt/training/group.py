"""The ranks of a run as one small value: who I am, and how we agree. Works without torch.distributed for one rank."""

import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# Of gloo, of a store, of NCCL's watchdog; then what gloo says once it has given up.
_TIMED_OUT = re.compile(
    r"timed out (waiting|after)|wait timeout after|collective operation timeout|timeout caused pair", re.IGNORECASE
)


@dataclass(frozen=True)
class Group:
    """This process among the data-parallel ranks, and the device that it trains on."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """True on rank 0, which writes files and talks to the meta-learner."""
        return self.rank == 0

    def makes(self, slot: int) -> bool:
        """Whether this rank makes the micro-batch number `slot` of a step."""
        return slot % self.world == self.rank

    def share(self, value: T | None) -> T:
        """Rank 0's `value` on every rank. Values only: an ObjectRef sent this way would hang the receiver."""
        if self.world == 1:
            return value  # type: ignore[return-value]
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_tensor(self, tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Rank 0's `tensor`, of `dtype` and `shape`, on every rank's device."""
        if tensor is None:
            moved = torch.empty(shape, dtype=dtype, device=self.device)
        else:
            moved = tensor.to(self.device).contiguous()
        dist.broadcast(moved, src=0)
        return moved

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over ranks, in place."""
        if self.world > 1:
            moved = tensor.to(self.device)
            dist.all_reduce(moved)
            tensor.copy_(moved)
        return tensor

    def any(self, *flags: Tensor | bool) -> list[bool]:
        """Whether each of `flags` holds on some rank; every rank gets the same answer."""
        if self.world == 1:
            return [bool(flag) for flag in flags]
        held = torch.stack([torch.as_tensor(flag, device=self.device).float() for flag in flags])
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return [value > 0 for value in held.tolist()]


def waited_too_long(error: BaseException, rank: int) -> str | None:
    """The line for people about a collective that `rank` has waited for until its time was up; None: another error."""
    if not isinstance(error, RuntimeError) or _TIMED_OUT.search(str(error)) is None:
        return None
    text = " ".join(str(error).split())[-160:]
    return (
        f"rank {rank} waited for the other ranks until its time was up ({text}): one of them is stuck, gone, or out of "
        "reach; their logs are logs/rank_*.log"
    )


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
