"""What training steps go through: the model, compiled where that can work, in DDP where there are several ranks."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from mlpt.training.group import Group


def wrapped(
    model: nn.Module, compile: bool, group: Group, warn: Callable[[str], None], compress_gradients: bool = False
) -> Any:
    """The callable for training steps; without a compiler, `warn` is told why the model stays as it is.

    compress_gradients  ranks exchange their gradients in bf16.
    """
    forward: Any = model
    if compile:
        reason = why_not_compile(group.device)
        if reason is None:
            forward = torch.compile(model)
        else:
            warn(f"train.compile has no effect: {reason}")
    if group.world == 1:
        return forward
    # Heads of objectives that a step doesn't draw get no gradient.
    parallel = DistributedDataParallel(forward, broadcast_buffers=False, find_unused_parameters=True)
    if compress_gradients:
        parallel.register_comm_hook(None, bf16_compress_hook)
    return parallel


def why_not_compile(device: torch.device) -> str | None:
    """The reason why models can't be compiled for `device`; None when they can."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if any(name and shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++")):
        return None
    return "there is no C++ compiler (g++ or clang++)"
