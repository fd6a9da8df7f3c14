"""Adam and AdamW as differentiable functions, equal to torch.optim's, registered with `higher`.

`higher` 0.2.1 has no AdamW, its Adam adds eps before the bias correction, and its square root is not differentiable
at zero (weights that no loss has touched). Adam: Kingma & Ba 2015; AdamW: Loshchilov & Hutter 2019, algorithm 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import higher
import torch
from torch import Tensor

from mlpt.errors import UserError

Moments = tuple[Tensor, ...]  # first moment, second moment, and with amsgrad the largest second moment so far

# What a parameter group may hold: settings that `adam_step` reads, and settings that change speed or bookkeeping only
# (`scale` multiplies the scheduled rate and is in `lr` already).
READ = {"params", "lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay"}
NEUTRAL = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "param_names", "name", "scale"}


def adam_step(
    parameter: Tensor, gradient: Tensor, moments: Moments, steps: float | Tensor, group: Mapping[str, Any]
) -> tuple[Tensor, Moments]:
    """One step of Adam, or of AdamW where the group says `decoupled_weight_decay`, as a pure elementwise function.

    parameter, gradient, moments   equal shapes and dtypes.
    steps                          steps taken, this one included.
    group                          a parameter group of torch.optim.Adam or AdamW.

    Returns the new parameter and moments, differentiable in every tensor (`lr` and `betas` too, where they are
    tensors). Where the second moment is zero, the gradient through its square root is zero instead of infinite.
    """
    lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
    if group["maximize"]:
        gradient = -gradient
    if isinstance(decay, Tensor) or decay != 0:
        if group["decoupled_weight_decay"]:
            parameter = parameter * (1 - lr * decay)
        else:
            gradient = gradient + decay * parameter
    exp_avg = torch.lerp(moments[0], gradient, 1 - beta1)
    exp_avg_sq = moments[1] * beta2 + (1 - beta2) * gradient * gradient
    scale = exp_avg_sq
    if group["amsgrad"]:
        scale = torch.maximum(moments[2], exp_avg_sq)
    denominator = _safe_sqrt(scale) / (1 - beta2**steps) ** 0.5 + group["eps"]
    parameter = parameter - lr / (1 - beta1**steps) * (exp_avg / denominator)
    return parameter, (exp_avg, exp_avg_sq, scale) if group["amsgrad"] else (exp_avg, exp_avg_sq)


def pulled_back(behind: Tensor, gradient: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """The adjoint of the gradient of a step of AdamW that was made, from that of the parameter after it.

    state  torch's state of the parameter after the step, which `gradient` is in.

    Zero where the second moment is zero. Raises `UserError` for options whose steps cannot be told afterwards.
    """
    if group["amsgrad"] or (group["weight_decay"] and not group["decoupled_weight_decay"]):
        raise UserError("engine 'alignment' follows AdamW without amsgrad: set engine=one_step")
    (beta1, beta2), steps = group["betas"], int(state["step"])
    correction, sign = (1 - beta2**steps) ** 0.5, -1 if group["maximize"] else 1
    root = state["exp_avg_sq"].sqrt()
    denominator = (root / correction).add_(group["eps"])
    bend = (state["exp_avg"] * gradient).mul_(sign * (1 - beta2) / correction).div_(root * denominator)
    slope = bend.sub_(1 - beta1).div_(denominator).mul_(behind)
    return slope.mul_(sign * group["lr"] / (1 - beta1**steps)).masked_fill_(root == 0, 0.0)


def moments_of(state: Mapping[str, Any], parameter: Tensor, group: Mapping[str, Any]) -> tuple[Moments, int]:
    """The moments and the step count in a torch optimiser's state of one parameter; zeros where it has none yet."""
    names = ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if group["amsgrad"] else [])
    if not state:
        return tuple(torch.zeros_like(parameter) for _ in names), 0
    return tuple(state[name] for name in names), int(state["step"])


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise `UserError` for an option of Adam or AdamW that the differentiable step does not know."""
    for group in groups:
        unknown = [key for key in group if key not in READ | NEUTRAL]
        if unknown:
            raise UserError(f"the look-ahead's AdamW does not know the option '{unknown[0]}': leave it out")


class DifferentiableAdam(higher.optim.DifferentiableOptimizer):
    """torch.optim.Adam for `higher`: its digits, its per-parameter step counts, its warm state.

    Raises `UserError` for options that it does not know and for sparse or complex gradients, rather than ignore them.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_groups(self.param_groups)

    def _update(self, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        for index, (group, gradients) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
            for place, gradient in enumerate(gradients):
                if gradient is None:
                    continue
                if gradient.is_sparse or gradient.is_complex():
                    raise UserError("the look-ahead's AdamW takes dense real gradients: use sparse=False embeddings")
                parameter = group["params"][place]
                moments, steps = moments_of(self.state[index][place], parameter.detach(), group)
                group["params"][place], moments = adam_step(parameter, gradient, moments, steps + 1, group)
                names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
                self.state[index][place] = {"step": steps + 1, **dict(zip(names, moments, strict=False))}


class DifferentiableAdamW(DifferentiableAdam):
    """torch.optim.AdamW for `higher`: its groups say `decoupled_weight_decay`."""


def _safe_sqrt(value: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero. Both `where`s are needed: infinity times zero is NaN."""
    zero = value == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, value).sqrt())


higher.register_optim(torch.optim.Adam, DifferentiableAdam)
higher.register_optim(torch.optim.AdamW, DifferentiableAdamW)
