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

from mlpt.errors import UserError, one_line
from mlpt.models.padded_decoder import pad_decoder
from mlpt.models.sharded import accumulate, average_whole, is_sharded
from mlpt.training.config import CompileMode, TrainConfig
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
            forward = compiled(model, config.keeps_shapes, mode=config.compile_mode)
            if config.records_graphs:
                forward = Replayed(forward)
                if group.device.type != "cuda":
                    warn(f"train.compile_mode={config.compile_mode} records no CUDA graphs: there is no GPU")
        else:
            warn(f"train.compile has no effect: {reason}")
    if group.world == 1 or is_sharded(model):
        return forward
    # Heads of objectives that a step doesn't draw get no gradient.
    parallel = DistributedDataParallel(forward, forward_sync_buffers=False, find_unused_parameters=True)
    if config.compress_gradients:
        parallel.register_comm_hook(None, _mean_in_bf16)
    return parallel


class Replayed(nn.Module):
    """A compiled model whose passes are recorded and replayed as CUDA graphs, which always write to the same memory.

    What a replay gives is overwritten by the next. So the loss is copied before it is given out; `exchanging` copies
    the first gradients of a step, to which autograd then adds those of later micro-batches.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> torch.Tensor:
        """As the model's. Nothing of an earlier pass is needed any more."""
        torch.compiler.cudagraph_mark_step_begin()
        loss: torch.Tensor = self.model(*inputs)
        return loss.clone()


def compiled(
    model: nn.Module,
    keeps_shapes: bool,
    backend: str | Callable[..., Any] = "inductor",
    mode: CompileMode = "default",
) -> Any:
    """`model` under `torch.compile`; where its inputs keep their shapes, each one is compiled for itself.

    There is a graph for each objective, with and without padding, more than the eight that torch would make before it
    went on without compiling.
    """
    how: dict[str, Any] = {"dynamic": False if keeps_shapes else None, "recompile_limit": _MOST_GRAPHS}
    return torch.compile(model, backend=backend, mode=mode, **how)


def compiled_for_any_shape(function: Callable[..., Any], mode: CompileMode, device: torch.device) -> Callable[..., Any]:
    """`function` under `torch.compile`, one graph for inputs of whatever size, with the dropout that it has without.

    Sizes of 1, and each choice of inputs that are None, make a graph of their own. Raises `UserError`, when called,
    where it cannot be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException  # importing it takes seconds
    from torch._inductor import list_mode_options

    how: dict[str, Any] = {"dynamic": True, "recompile_limit": _MOST_GRAPHS}
    made = torch.compile(function, options={**list_mode_options(mode), "fallback_random": True}, **how)

    def call(*inputs: Any, **named: Any) -> Any:
        try:
            return made(*inputs, **named)
        except TorchDynamoException as error:
            why = one_line(str(error).partition("\n\n")[0])  # without advice for who writes models
            raise UserError(
                f"torch.compile cannot compile this model for {device.type} ({why}); set compile=false"
            ) from error

    return call


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
    with contextlib.nullcontext() if alone else forward.no_sync(), _keeping_gradients(forward):
        yield


@contextlib.contextmanager
def _keeping_gradients(forward: Any) -> Iterator[None]:
    """Gradients that a `Replayed` model's backward pass leaves are copied: the next one writes over them."""
    inside = forward.module if isinstance(forward, DistributedDataParallel) else forward
    replayed = isinstance(inside, Replayed)
    without = [one for one in inside.parameters() if one.grad is None] if replayed else []
    yield
    for one in without:
        if one.grad is not None:
            one.grad = one.grad.clone()


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
