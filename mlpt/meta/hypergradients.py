"""Hypergradients for any torch model: `from mlpt.meta import lookahead` (docs/HYPERGRADIENTS.md)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mlpt.errors import UserError
from mlpt.meta.engines import ENGINES
from mlpt.meta.engines.base import Engine, Hypergradient, InnerLoss, InnerStep, Lookahead, Made
from mlpt.registry import find_class


def lookahead(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    outer: Mapping[str, Tensor],
    inner: InnerLoss | Sequence[InnerLoss],
    outer_loss: InnerLoss,
    engine: str | Engine = "auto",
    backward_steps: int | None = None,
    made: Made | None = None,
) -> Hypergradient:
    """The gradient of a held-out loss after inner optimiser steps, by what those steps depend on.

    model       any module (bare: neither compiled nor in DDP); weights may be tied. It is not changed.
    optimizer   torch's Adam or AdamW over its parameters. Its moments and counts are where the inner steps start.
    outer       tensors that require a gradient, by name. One that has a parameter's name takes its place in the model.
    inner       a loss for each inner step, (forward, outer) -> scalar; `forward` is the model at the step's weights and
                is called as the model is. Alone: one step.
    outer_loss  the held-out loss at the weights after the last step, (forward, outer) -> scalar.
    engine      a name of `mlpt.meta.engines.ENGINES`, a class package.module:Class, or an `Engine`, which keeps what it
                chose: give the same one at every call of a loop.
    backward_steps  how many of the inner steps, the last ones, the gradient is followed through; None: all.
    made        for engine `alignment`: the one inner step has been made of these gradients; `model` and `optimizer` are
                as it left them. The inner loss then says only how losses are weighed, and `forward` returns 1.

    Returns the held-out loss, detached, and its gradient by each of `outer`, in their shapes and dtypes. Losses must
    give the same value when they are called again (no dropout: `model.eval()`; no fresh noise).
    Raises `UserError` for what an engine or the differentiable AdamW cannot do.
    """
    frozen = [name for name, one in outer.items() if not (one.is_leaf and one.requires_grad)]
    if frozen or not outer:
        raise UserError(f"outer must hold leaf tensors that require a gradient{_named(frozen)}")
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise UserError(f"a look-ahead follows torch's Adam or AdamW, not {type(optimizer).__name__}")
    own = {id(one) for one in model.parameters()}
    if any(id(one) not in own for group in optimizer.param_groups for one in group["params"]):
        raise UserError("the optimizer holds a parameter that the model has not: give one over the model's alone")
    losses: Sequence[Callable[..., Tensor]] = [inner] if callable(inner) else list(inner)
    if not losses:
        raise UserError("a look-ahead has at least one inner step")
    if backward_steps is not None and backward_steps < 1:
        raise UserError(f"backward_steps is {backward_steps}: the gradient is followed through at least one step")
    solve = engine if isinstance(engine, Engine) else find_class(engine, ENGINES, Engine, "engine")()
    steps = [InnerStep(one) for one in losses]
    return solve(Lookahead(model, optimizer, outer, steps, outer_loss, backward_steps, made))


def _named(names: Sequence[str]) -> str:
    return f", and {names[0]!r} is none" if names else ""
