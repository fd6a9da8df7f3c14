"""Hypergradients: d(meta-dev loss)/d(outer tensors) through K inner AdamW steps, by three engines.

`higher` unrolls the steps with second-order autodiff (Grefenstette et al. 2019) and is the reference. `one_step` is
the chain rule written out for K = 1. `finite_difference` runs the adjoint of the K steps backwards and takes each
Hessian-vector product as a central difference of gradients (as DARTS does for one step; Liu et al. 2019, eq. 8).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import higher
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlpt.errors import UserError
from mlpt.meta.optim import Moments, adam_step, check_groups, moments_of

Forward = Callable[..., Tensor]  # the model at some weights; called as the model is
Outer = Mapping[str, Tensor]


@dataclass(frozen=True)
class Lookahead:
    """A bilevel problem at one moment of training.

    model       the bare module; its parameters are where the inner steps start. Neither they nor the optimiser change.
    optimizer   AdamW (or Adam) over parameters of `model`; its state and rates are where the inner steps start.
    outer       the tensors to differentiate by, leaves that require a gradient. One whose name is a parameter of the
                model takes that parameter's place in every forward pass (and must not be in the optimiser); the others
                reach the losses through their `outer` argument.
    inner_loss  (forward, k, outer) -> scalar loss of inner step k, from 0.
    outer_loss  (forward, outer) -> scalar meta-dev loss at the weights after the last step.
    steps       K >= 1.

    Both losses are pure: called again with the same weights they give the same value (no dropout, no fresh noise).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    outer: Outer
    inner_loss: Callable[[Forward, int, Outer], Tensor]
    outer_loss: Callable[[Forward, Outer], Tensor]
    steps: int = 1


class Hypergradient(NamedTuple):
    """The meta-dev loss after the inner steps, a detached scalar, and its gradient by the name of each outer tensor."""

    loss: Tensor
    gradients: dict[str, Tensor]


class HypergradientEngine(Protocol):
    """Anything that solves a `Lookahead`."""

    def __call__(self, problem: Lookahead) -> Hypergradient: ...


class Higher:
    """The exact gradient by unrolling, for any K; memory grows with K. Attention runs on SDPA's MATH backend.

    One patched model is kept and reused: `higher` makes a class for every submodule it patches.
    """

    def __init__(self) -> None:
        self._of: nn.Module | None = None
        self._patched: Any = None

    def __call__(self, problem: Lookahead) -> Hypergradient:
        model = self._patch(problem.model)
        outer = list(problem.outer.values())
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            model.update_params([problem.outer.get(name, one) for name, one in _leaves(problem.model).items()])
            optimizer = higher.optim.get_diff_optim(problem.optimizer, problem.model.parameters(), fmodel=model)
            try:
                for k in range(problem.steps):
                    optimizer.step(problem.inner_loss(model, k, problem.outer))
                loss = problem.outer_loss(model, problem.outer)
                gradients = torch.autograd.grad(loss, outer, allow_unused=True)
            finally:
                self._forget(problem.model)
        return Hypergradient(loss.detach(), _named(problem.outer, gradients))

    def _patch(self, model: nn.Module) -> Any:
        if self._of is not model:
            self._of, self._patched = model, higher.monkeypatch(model)
        for module in self._patched.modules():
            module.training = model.training
        higher.patch.buffer_sync(model, self._patched)
        self._patched._fast_params = None  # start a new history
        return self._patched

    def _forget(self, model: nn.Module) -> None:
        """Drop the unrolled graph: let the patched model point at the plain weights again."""
        self._patched._fast_params = None
        self._patched.update_params([parameter.detach() for parameter in model.parameters()])


class OneStep:
    """K = 1 in closed form: d L_dev / d w_i = <grad L_i, J^T g_dev>, J the Jacobian of the AdamW step by its gradient.

    First-order passes only, so any attention kernel works, at the price of one stored gradient an inner loss. Outer
    tensors may enter the inner loss only by how it combines the losses that `forward` returns (mixture weights).
    Raises `UserError` for more steps or for outer tensors inside the model.
    """

    def __call__(self, problem: Lookahead) -> Hypergradient:
        if problem.steps != 1:
            raise UserError("engine 'one_step' looks one step ahead: set inner_steps=1, or engine=higher")
        weights = _leaves(problem.model)
        if weights.keys() & problem.outer.keys():
            raise UserError("engine 'one_step' cannot differentiate by parameters of the model: set engine=higher")
        combination, per_loss = self._inner_gradients(problem, weights)
        gradients = {name: _weighted_sum(combination, [each[name] for each in per_loss]) for name in weights}
        inner = _Trainees(problem)
        after = {**weights, **inner.step(weights, gradients)}
        loss, adjoint, direct = _outer_gradients(problem, after)
        adapted, _ = inner.pull_back(adjoint)
        alignments = [_dot(each, adapted) for each in per_loss]
        # The combination's weights are functions of the outer tensors; the alignments are numbers.
        total = torch.stack([weight * one for weight, one in zip(combination, alignments, strict=True)]).sum()
        through = torch.autograd.grad(total, list(problem.outer.values()), allow_unused=True)
        return Hypergradient(loss, _add(direct, _named(problem.outer, through)))

    @staticmethod
    def _inner_gradients(
        problem: Lookahead, weights: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], list[dict[str, Tensor | None]]]:
        """d(inner loss)/d(each loss that it combines), with its graph to the outer tensors; each loss's gradient."""
        losses: list[Tensor] = []
        leaves: list[Tensor] = []

        def forward(*args: Any) -> Tensor:
            losses.append(functional_call(problem.model, weights, args))
            leaves.append(losses[-1].detach().requires_grad_())
            return leaves[-1]

        inner = problem.inner_loss(forward, 0, problem.outer)
        combination = torch.autograd.grad(inner, leaves, create_graph=True)
        trained = [weight for weight in weights.values() if weight.requires_grad]
        names = [name for name, weight in weights.items() if weight.requires_grad]
        per_loss = []
        for loss in losses:
            found = torch.autograd.grad(loss, trained, allow_unused=True)
            per_loss.append({**dict.fromkeys(weights), **dict(zip(names, found, strict=True))})
        return combination, per_loss


class FiniteDifference:
    """Any K with first-order passes only: memory near that of plain training, any attention kernel.

    radius  length of the weight displacement of a central difference; small against curvature, large against rounding.
            1e-2 suits float32.
    """

    def __init__(self, radius: float = 1e-2):
        self.radius = radius

    def __call__(self, problem: Lookahead) -> Hypergradient:
        start = _leaves(problem.model)
        inner = _Trainees(problem)
        path = [start]  # the weights before each inner step
        for k in range(problem.steps):
            gradients, _ = self._gradients(problem, path[k], k, by_weights=True)
            path.append({**path[k], **inner.step(path[k], gradients)})
        loss, adjoint, total = _outer_gradients(problem, path.pop())
        for k in reversed(range(problem.steps)):
            adapted, adjoint = inner.pull_back(adjoint)
            curvature, mixed = self._second_order(problem, path[k], adapted, k)
            adjoint = _add(adjoint, curvature)
            total = _add(total, mixed)
        return Hypergradient(loss, total)

    def _second_order(
        self, problem: Lookahead, weights: dict[str, Tensor], direction: dict[str, Tensor], k: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The derivative of inner step k's gradients by the weights and by the outer tensors along `direction`."""
        length = float(torch.stack([one.norm() for one in direction.values()]).norm()) if direction else 0.0
        if length == 0:
            return {}, {}
        scale = self.radius / length
        sides = []
        for sign in (1, -1):
            displaced = {name: weights[name].detach() + sign * scale * one for name, one in direction.items()}
            moved = {**weights, **{name: one.requires_grad_() for name, one in displaced.items()}}
            sides.append(self._gradients(problem, moved, k, by_weights=k > 0))  # nobody asks what came before step 0
        (plus, plus_outer), (minus, minus_outer) = sides
        curvature = {
            name: (one - other) / (2 * scale)
            for name, one in plus.items()
            if one is not None and (other := minus[name]) is not None
        }
        return curvature, {name: (plus_outer[name] - minus_outer[name]) / (2 * scale) for name in plus_outer}

    @staticmethod
    def _gradients(
        problem: Lookahead, weights: dict[str, Tensor], k: int, by_weights: bool
    ) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
        """Gradients of inner step k's loss by the trained weights (if asked) and by the outer tensors."""
        inner = problem.inner_loss(_forward_at(problem, weights), k, problem.outer)
        names = [name for name, one in weights.items() if one.requires_grad] if by_weights else []
        sources = [weights[name] for name in names] + list(problem.outer.values())
        found = torch.autograd.grad(inner, sources, allow_unused=True)
        return dict(zip(names, found, strict=False)), _named(problem.outer, found[len(names) :])


ENGINES: dict[str, Callable[[], HypergradientEngine]] = {
    "higher": Higher,
    "one_step": OneStep,
    "finite_difference": FiniteDifference,
}


class _Trainees:
    """AdamW's path over the parameters that it trains, and the way back: steps forward, then as many pull-backs."""

    def __init__(self, problem: Lookahead):
        check_groups(problem.optimizer.param_groups)
        names = {parameter: name for name, parameter in problem.model.named_parameters()}
        self._groups: dict[str, Mapping[str, Any]] = {}
        self._moments: dict[str, Moments] = {}
        self._counts: dict[str, int] = {}
        for group in problem.optimizer.param_groups:
            for parameter in group["params"]:
                name = names[parameter]
                self._groups[name] = group
                state = problem.optimizer.state.get(parameter, {})
                self._moments[name], self._counts[name] = moments_of(state, parameter.detach(), group)
        self._tape: list[dict[str, tuple[Tensor, Tensor, Moments, int]]] = []
        self._adjoint: dict[str, Moments] = {}  # of the moments

    def step(self, weights: dict[str, Tensor], gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The stepped parameters as new leaves. A parameter without a gradient is not stepped, as in torch."""
        taken, stepped = {}, {}
        for name, group in self._groups.items():
            gradient = gradients.get(name)
            if gradient is None:
                continue
            self._counts[name] += 1
            taken[name] = (weights[name].detach(), gradient, self._moments[name], self._counts[name])
            new, self._moments[name] = adam_step(*taken[name], group)
            stepped[name] = new.requires_grad_()
        self._tape.append(taken)
        return stepped

    def pull_back(self, adjoint: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Undo the newest step: from the adjoint of the weights after it to those of its gradient and weights before.

        The Jacobian is autodiff's, of an elementwise function, one parameter at a time.
        """
        by_gradient, before = {}, dict(adjoint)
        for name, (weight, gradient, moments, count) in self._tape.pop().items():
            behind = adjoint.get(name)
            sources = [one.detach().requires_grad_() for one in (weight, gradient, *moments)]
            new, new_moments = adam_step(sources[0], sources[1], tuple(sources[2:]), count, self._groups[name])
            adjoints = [torch.zeros_like(weight) if behind is None else behind]
            adjoints += self._adjoint.get(name, [torch.zeros_like(one) for one in moments])
            found = torch.autograd.grad([new, *new_moments], sources, adjoints)
            # Where the second moment is still zero, no loss has ever touched the weight: it has no say in any gradient,
            # and a slope of 1 / eps there would drown the rest of the direction.
            by_gradient[name] = torch.where(new_moments[1] == 0, 0.0, found[1])
            before[name], self._adjoint[name] = found[0], tuple(found[2:])
        return by_gradient, before


def _leaves(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters as leaves of a new graph, sharing memory with it."""
    return {name: one.detach().requires_grad_(one.requires_grad) for name, one in model.named_parameters()}


def _forward_at(problem: Lookahead, weights: dict[str, Tensor]) -> Forward:
    inside = {name: one for name, one in problem.outer.items() if name in weights}
    return lambda *args: functional_call(problem.model, {**weights, **inside}, args)


def _outer_gradients(
    problem: Lookahead, weights: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The meta-dev loss at `weights`, its gradients by them, and its direct gradients by the outer tensors."""
    loss = problem.outer_loss(_forward_at(problem, weights), problem.outer)
    names = [name for name, one in weights.items() if one.requires_grad and name not in problem.outer]
    sources = [weights[name] for name in names] + list(problem.outer.values())
    found = torch.autograd.grad(loss, sources, allow_unused=True)
    adjoint = {name: one for name, one in zip(names, found, strict=False) if one is not None}
    return loss.detach(), adjoint, _named(problem.outer, found[len(names) :])


def _named(outer: Outer, gradients: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    """Gradients by name; zeros where a loss does not depend on the tensor."""
    pairs = zip(outer.items(), gradients, strict=True)
    return {name: torch.zeros_like(one) if found is None else found for (name, one), found in pairs}


def _add(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**left, **{name: left[name] + one if name in left else one for name, one in right.items()}}


def _weighted_sum(weights: tuple[Tensor, ...], gradients: list[Tensor | None]) -> Tensor | None:
    total = None
    for weight, one in zip(weights, gradients, strict=True):
        if one is not None:
            total = weight.detach() * one if total is None else torch.addcmul(total, weight.detach(), one)
    return total


def _dot(gradients: Mapping[str, Tensor | None], direction: Mapping[str, Tensor]) -> Tensor:
    pairs = [(one, direction[name]) for name, one in gradients.items() if one is not None and name in direction]
    return sum(((one * other).sum() for one, other in pairs), start=torch.zeros(()))
