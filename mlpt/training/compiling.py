"""What training steps go through: the model, compiled where that can work, in DDP where there are several ranks."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mlpt.models.padded_decoder import pad_decoder
from mlpt.models.sharded import accumulate, average_whole, is_sharded
from mlpt.training.config import TrainConfig
from mlpt.training.group import Group

_MOST_GRAPHS = 64


def wrapped(model: nn.Module, config: TrainConfig, group: Group, warn: Callable[[str], None]) -> Any:
    """The callable for training steps; without a compiler, `warn` is told why the model stays as it is."""
    if group.device.type == "cuda" if config.pad_vocabulary is None else config.pad_vocabulary:
        pad_decoder(model.backbone)
    forward: Any = model
    if config.compile:
        reason = why_not_compile(group.device)
        if reason is None:
            forward = compiled(model, config.keeps_shapes)
        else:
            warn(f"train.compile has no effect: {reason}")
    if group.world == 1 or is_sharded(model):
        return forward
    # Heads of objectives that a step doesn't draw get no gradient.
    parallel = DistributedDataParallel(forward, forward_sync_buffers=False, find_unused_parameters=True)
    if config.compress_gradients:
        parallel.register_comm_hook(None, _mean_in_bf16)
    return parallel


def compiled(model: nn.Module, keeps_shapes: bool, backend: str | Callable[..., Any] = "inductor") -> Any:
    """`model` under `torch.compile`; where its inputs keep their shapes, each one is compiled for itself.

    There is a graph for each objective, with and without padding, more than the eight that torch would make before it
    went on without compiling.
    """
    how: dict[str, Any] = {"dynamic": False if keeps_shapes else None, "recompile_limit": _MOST_GRAPHS}
    return torch.compile(model, backend=backend, **how)


@contextlib.contextmanager
def exchanging(forward: Any, last: bool) -> Iterator[None]:
    """A forward and backward pass of what `wrapped` gave runs in the block; a step's `last` exchanges gradients."""
    if is_sharded(forward):
        accumulate(forward, last)
        yield
        if last:
            average_whole(forward)
        return
    alone = last or not isinstance(forward, DistributedDataParallel)
    with contextlib.nullcontext() if alone else forward.no_sync():
        yield


def _mean_in_bf16(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """As torch's `bf16_compress_hook`, which DDP takes with NCCL alone."""
    whole = bucket.buffer()
    rounded = whole.to(torch.bfloat16).div_(dist.get_world_size())
    return dist.all_reduce(rounded, async_op=True).get_future().then(lambda sent: whole.copy_(sent.value()[0]))


def why_not_compile(device: torch.device) -> str | None:
    """The reason why models can't be compiled for `device`; None when they can."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if any(name and shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++")):
        return None
    return "there is no C++ compiler (g++ or clang++)"
