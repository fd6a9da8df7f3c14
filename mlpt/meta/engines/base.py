"""What a look-ahead is, whoever solves it: inner steps from the state of training, then a held-out loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlpt.errors import UserError

Forward = Callable[..., Tensor]  # the model at some weights; called as the model is
Outer = Mapping[str, Tensor]
_PIECE = 1 << 14  # numbers
InnerLoss = Callable[[Forward, Outer], Tensor]  # (forward, outer) -> scalar loss


@dataclass(frozen=True)
class Sgd:
    """Plain gradient descent over the parameters that the problem's optimiser trains: no momentum, no decay."""

    lr: float


@dataclass(frozen=True)
class InnerStep:
    """One inner step: its loss, and what steps the weights down it (None: the problem's own optimiser)."""

    loss: InnerLoss
    optimizer: Sgd | None = None


@dataclass(frozen=True)
class Made:
    """An optimiser step that has been made, and what it was made of.

    total      the gradient that the optimiser took, by the parameter's name; one that is missing had none.
    gradients  of each loss that the step's loss combines, in the order in which it calls `forward`, without its weight
               and before clipping, by the parameter's name. None: not kept.
    clipped    what clipping multiplied the gradient by; 1: nothing was clipped.
    """

    total: Mapping[str, Tensor]
    gradients: Sequence[Mapping[str, Tensor] | None]
    clipped: float = 1.0


@dataclass(frozen=True)
class Lookahead:
    """A bilevel problem at one moment of training.

    model       the bare module; its parameters are where the inner steps start. Neither they nor the optimiser change.
    optimizer   AdamW (or Adam) over parameters of `model`; its state and rates are where the inner steps start.
    outer       the tensors to differentiate by, leaves that require a gradient. One whose name is a parameter of the
                model takes that parameter's place in every forward pass (and must not be in the optimiser); the others
                reach the losses through their `outer` argument.
    steps       the inner steps, at least one.
    outer_loss  (forward, outer) -> scalar meta-dev loss at the weights after the last step.
    backward_steps  through how many of the inner steps, the last ones, the gradient is followed: truncated
                back-propagation (Shaban et al. 2019). None: through all.
    made        the one inner step, already made: then `model` and `optimizer` are as it left them. For `alignment`.
    by_parameter  asks for the gradients' parts by parameter, which engines for K = 1 can tell (see `Hypergradient`).

    Losses are pure: called again with the same weights they give the same value (no dropout, no fresh noise).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    outer: Outer
    steps: Sequence[InnerStep]
    outer_loss: InnerLoss
    backward_steps: int | None = None
    made: Made | None = None
    by_parameter: bool = False

    @property
    def first_tracked(self) -> int:
        """The number, from 0, of the first inner step that the gradient is followed through."""
        return 0 if self.backward_steps is None else max(0, len(self.steps) - self.backward_steps)


class Hypergradient(NamedTuple):
    """The meta-dev loss after the inner steps, a detached scalar, and its gradient by the name of each outer tensor.

    Where `Lookahead.by_parameter` asks for it and it can be told, `gradients` has under `by_parameter_of(name)`, too,
    (parameters, *shape): how much of that gradient goes through the step of each parameter that trains, in their order.
    """

    loss: Tensor
    gradients: dict[str, Tensor]


class Unsuited(UserError):  # noqa: N818 (it says what the engine is for the problem)
    """This engine cannot solve this problem; another one can."""


class Engine:
    """Solves a `Lookahead`; a run keeps one, and calls it at every update.

    uses_made    it follows a step that training has made, whose gradients training keeps for it.
    takes_apart  it tells gradients' parts by parameter (`Lookahead.by_parameter`) after one step whose losses the outer
                 tensors only weigh.
    """

    uses_made: ClassVar[bool] = False
    takes_apart: ClassVar[bool] = False

    def __call__(self, problem: Lookahead) -> Hypergradient:
        raise NotImplementedError(f"{type(self).__name__}.__call__")


def leaves(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters as leaves of a new graph, sharing memory with it."""
    return {name: one.detach().requires_grad_(one.requires_grad) for name, one in model.named_parameters()}


def forward_at(problem: Lookahead, weights: dict[str, Tensor]) -> Forward:
    """The model at `weights`, with the outer tensors that take parameters' places."""
    inside = {name: one for name, one in problem.outer.items() if name in weights}
    return lambda *args, **kwargs: functional_call(problem.model, {**weights, **inside}, args, kwargs)


def outer_gradients(
    problem: Lookahead, weights: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The meta-dev loss at `weights`, its gradients by them, and its direct gradients by the outer tensors."""
    loss = problem.outer_loss(forward_at(problem, weights), problem.outer)
    names = [name for name, one in weights.items() if one.requires_grad and name not in problem.outer]
    sources = [weights[name] for name in names] + list(problem.outer.values())
    found = torch.autograd.grad(loss, sources, allow_unused=True)
    adjoint = {name: one for name, one in zip(names, found, strict=False) if one is not None}
    return loss.detach(), adjoint, named(problem.outer, found[len(names) :])


def named(outer: Outer, gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Gradients by name; zeros where a loss does not depend on the tensor."""
    pairs = zip(outer.items(), gradients, strict=True)
    return {name: torch.zeros_like(one) if found is None else found for (name, one), found in pairs}


def through_weights(
    problem: Lookahead, combination: Sequence[Tensor], alignments: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Gradients by name through the weights of combined losses, whose alignments are numbers; zeros where no outer
    tensor weighs a loss."""
    total = torch.stack([weight * one for weight, one in zip(combination, alignments, strict=True)]).sum()
    if not total.requires_grad:
        return named(problem.outer, [None] * len(problem.outer))
    return named(problem.outer, torch.autograd.grad(total, list(problem.outer.values()), allow_unused=True))


def add(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum by name; a name that stands on one side only is taken over."""
    return {**left, **{name: left[name] + one if name in left else one for name, one in right.items()}}


def dot(gradients: Mapping[str, Any], direction: Mapping[str, Tensor]) -> Tensor:
    """The inner product over the names that both have; nothing flows through it."""
    pairs: Any = [(one, direction[name]) for name, one in gradients.items() if one is not None and name in direction]
    parts = [torch.dot(*two) for pair in pairs for two in pieces(*pair)]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def by_parameter_of(name: str) -> str:
    """The name of the parts of an outer tensor's gradient."""
    return f"{name}/by_parameter"


def by_parameter(
    problem: Lookahead,
    combination: Sequence[Tensor],
    gradients: Sequence[Mapping[str, Tensor | None]],
    direction: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The parts of gradients, by `by_parameter_of` each name, after one step whose loss combines losses.

    combination  d(inner loss)/d(each loss), with its graph to the outer tensors.
    gradients    of each loss. direction: the adjoint of what they were combined to.
    """
    names = [name for name, one in problem.model.named_parameters() if one.requires_grad]
    rows = [[float(dot({name: one.get(name)}, direction)) for one in gradients] for name in names]
    products = torch.tensor(rows, dtype=torch.float64)  # (parameters, losses)
    leaves = list(problem.outer.values())
    found = {
        by_parameter_of(name): one.detach().new_zeros(len(names), *one.shape) for name, one in problem.outer.items()
    }
    for weight, column in zip(combination, products.T, strict=True):
        if weight.requires_grad:
            by_outer = torch.autograd.grad(weight, leaves, retain_graph=True, allow_unused=True)
            for name, one in named(problem.outer, by_outer).items():
                found[by_parameter_of(name)] += column.to(one).view(-1, *[1] * one.ndim) * one
    return found


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same numbers of each of `tensors`, of equal shapes, flat and without their graphs.

    On a CPU so few at a time that what is computed from them stays in the core's cache: memory is slower than
    arithmetic, and fresh memory slower still. On a GPU all at once.
    """
    flat = [one.detach().reshape(-1) for one in tensors]
    size = _PIECE if flat[0].device.type == "cpu" else max(1, flat[0].numel())
    return zip(*(one.split(size) for one in flat), strict=True)
