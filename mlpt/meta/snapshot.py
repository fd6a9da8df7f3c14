"""Snapshots: what training has changed by one step, weights and AdamW state as flat float32 buffers, and the way back.

One flat buffer travels through Ray's object store in one copy; a state dict of hundreds of tensors does not.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpt.errors import UserError
from mlpt.meta.engines.base import Made
from mlpt.models.sharded import whole
from mlpt.storage.memory import aligned

_ALIKE = "the meta-learner needs the same model settings as the workers"


@dataclass(frozen=True)
class MadeStep:
    """The step that training made last, in the order of a snapshot's parameters.

    total    (n,) float32, the gradient that the optimiser took; zeros where there was none.
    arms     (n,) float32 of each arm that the step trained: its mean gradient, unweighted, before clipping.
    clipped  what clipping multiplied the gradient by; 1: nothing was clipped.
    """

    total: np.ndarray
    arms: Mapping[str, np.ndarray]
    clipped: float


@dataclass(frozen=True)
class Snapshot:
    """The trainees' state at one step, as flat buffers (one copy, zero-copy through Ray's object store).

    All that training changes is in it, so that a model that started as the trainees did, and was given a snapshot, is
    the same network.

    step              optimiser steps done.
    parameters        (n,) float32, the trainable parameters in `model.parameters()` order, flattened and joined.
    exp_avg           (n,) float32, AdamW's first moments, zeros where there are none yet; None when no rule asks.
    exp_avg_sq        (n,) float32, AdamW's second moments, likewise.
    optimizer_steps   (number of parameter tensors,) int64: AdamW's step count of each (heads that idle lag behind).
    learning_rate     the rate of the step to come.
    altered           names of the frozen parameters that step hooks may change (scores of iterative pruning, say).
    frozen            (m,) float32, their values, flattened and joined in that order.
    buffers           every buffer by its name (the thresholds of masks are such), in its own shape and dtype.
    made              the step before this one, where a rule follows it and it was made.
    """

    step: int
    parameters: np.ndarray
    learning_rate: float
    altered: tuple[str, ...] = ()
    frozen: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    buffers: Mapping[str, np.ndarray] = field(default_factory=dict)
    exp_avg: np.ndarray | None = None
    exp_avg_sq: np.ndarray | None = None
    optimizer_steps: np.ndarray | None = None
    made: MadeStep | None = None


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that every snapshot holds, in its order: those with gradients, in `model.parameters()` order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.no_grad()
def take_snapshot(
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    step: int,
    learning_rate: float,
    moments: bool,
    out: Snapshot | None = None,
    altered: Sequence[str] = (),
    made: MadeStep | None = None,
) -> Snapshot:
    """Copy the model's trainable parameters and buffers, with `moments` also AdamW's state, to the CPU.

    model          the bare module, not wrapped by DDP or torch.compile, which give its parameters other names.
    learning_rate  the rate of the step to come.
    altered        names of frozen parameters that something else than gradients may change; they come along.
    made           the step before, which goes with the snapshot as it is.
    out            an earlier snapshot of the same model whose buffers are overwritten and returned again; whoever
                   still reads it sees the new values (`ray.put` copies, so that a put snapshot may be reused).

    Of a model whose layers ranks share out it is the whole one's, and every rank must take it.
    Raises `UserError` for amsgrad with `moments`: its maximum is not part of a snapshot.
    """
    parameters = trainable(model)
    frozen = [model.get_parameter(name) for name in altered]
    buffers = _buffers(out, _size(parameters), _size(frozen), len(parameters), moments)
    _copy_in(buffers["parameters"], parameters, parameters)
    _copy_in(buffers["frozen"], frozen, frozen)
    if moments:
        _refuse_amsgrad(optimizer)
        states = [optimizer.state.get(parameter, {}) for parameter in parameters]
        _copy_in(buffers["exp_avg"], [state.get("exp_avg") for state in states], parameters)
        _copy_in(buffers["exp_avg_sq"], [state.get("exp_avg_sq") for state in states], parameters)
        buffers["optimizer_steps"][:] = [int(state.get("step", 0)) for state in states]
    # Small, and copied: those of the model change in place.
    others = {name: buffer.detach().cpu().numpy().copy() for name, buffer in model.named_buffers()}
    names = tuple(altered)
    return Snapshot(step=step, learning_rate=learning_rate, altered=names, buffers=others, made=made, **buffers)


@torch.no_grad()
def load_snapshot(model: nn.Module, optimizer: torch.optim.AdamW, snapshot: Snapshot) -> None:
    """Write a snapshot into a model of the same parameters and, where it holds moments, into its AdamW.

    Sets the learning rate of every parameter group (times the group's own `scale`, where it has one). A parameter that
    AdamW has not stepped yet gets no state, as in a fresh AdamW. Raises `UserError` when the sizes differ.
    """
    parameters = trainable(model)
    if snapshot.parameters.size != _size(parameters):
        raise UserError(
            f"the snapshot holds {snapshot.parameters.size} weights and the model trains {_size(parameters)}: {_ALIKE}"
        )
    named, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    unknown = sorted({*snapshot.altered} - named.keys()) + sorted(snapshot.buffers.keys() - buffers.keys())
    if unknown:
        raise UserError(f"the snapshot holds '{unknown[0]}', which the model does not have: {_ALIKE}")
    for parameter, values in _pieces(snapshot.parameters, parameters):
        parameter.copy_(values)
    for parameter, values in _pieces(snapshot.frozen, [named[name] for name in snapshot.altered]):
        parameter.copy_(values)
    for name, array in snapshot.buffers.items():
        buffers[name].copy_(_tensor(array))
    for group in optimizer.param_groups:
        group["lr"] = snapshot.learning_rate * group.get("scale", 1.0)
    if snapshot.exp_avg is None or snapshot.exp_avg_sq is None or snapshot.optimizer_steps is None:
        return
    _refuse_amsgrad(optimizer)
    counts = snapshot.optimizer_steps.tolist()
    on_device = {id(one) for group in optimizer.param_groups if _counts_on_device(group) for one in group["params"]}
    first, second = _pieces(snapshot.exp_avg, parameters), _pieces(snapshot.exp_avg_sq, parameters)
    for (parameter, exp_avg), (_, exp_avg_sq), count in zip(first, second, counts, strict=True):
        if count == 0:
            optimizer.state.pop(parameter, None)
        else:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(count), device=parameter.device if id(parameter) in on_device else None),
                "exp_avg": exp_avg.to(parameter, copy=True),
                "exp_avg_sq": exp_avg_sq.to(parameter, copy=True),
            }


def made_step(model: nn.Module, step: MadeStep, arms: Sequence[str]) -> Made:
    """What `step` was made of, for a look-ahead whose inner loss combines the losses of `arms` in this order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = trainable(model)

    def named(values: np.ndarray) -> dict[str, Tensor]:
        begins = aligned(_tensor(values)).numpy()
        return {names[parameter]: one.to(parameter) for parameter, one in _pieces(begins, parameters)}

    gradients = [named(step.arms[arm]) if arm in step.arms else None for arm in arms]
    return Made(named(step.total), gradients, step.clipped)


def _size(parameters: Sequence[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _buffers(out: Snapshot | None, size: int, frozen: int, tensors: int, moments: bool) -> dict[str, np.ndarray]:
    wanted: dict[str, tuple[int, type]] = {"parameters": (size, np.float32), "frozen": (frozen, np.float32)}
    if moments:
        wanted |= {"exp_avg": (size, np.float32), "exp_avg_sq": (size, np.float32)}
        wanted |= {"optimizer_steps": (tensors, np.int64)}
    buffers = {}
    for name, (length, dtype) in wanted.items():
        old = None if out is None else getattr(out, name)
        buffers[name] = old if old is not None and old.shape == (length,) else np.empty(length, dtype)
    return buffers


def _copy_in(buffer: np.ndarray, tensors: Sequence[Tensor | None], parameters: list[nn.Parameter]) -> None:
    """Join `tensors`, one for each of `parameters`, in `buffer` (n,); None counts as zeros."""
    for tensor, (_, piece) in zip(tensors, _pieces(buffer, parameters), strict=True):
        if tensor is None:
            piece.zero_()
        else:
            piece.copy_(whole(tensor))


def _pieces(buffer: np.ndarray, parameters: list[nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each parameter with its part of `buffer`, in the parameter's shape."""
    flat, start = _tensor(buffer), 0
    for parameter in parameters:
        yield parameter, flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()


def _tensor(values: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # Ray hands out read-only arrays, of which torch warns; nobody writes to those.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def _counts_on_device(group: dict[str, Any]) -> bool:
    return bool(group.get("fused") or group.get("capturable"))


def _refuse_amsgrad(optimizer: torch.optim.AdamW) -> None:
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise UserError("a rule that looks ahead needs AdamW without amsgrad: its maxima are not part of a snapshot")
