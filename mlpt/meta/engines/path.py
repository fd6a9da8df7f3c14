"""The path of the inner steps over the weights that train, and the way back along it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlpt.meta.engines.adam import Moments, adam_step, check_groups, moments_of
from mlpt.meta.engines.base import Lookahead, Sgd

# weight, gradient, moments before the step, and the count of Adam's steps, this one included
_Taken = tuple[Tensor, Tensor, Moments, int]


class Path:
    """Inner steps forward, then as many pull-backs. The optimiser's own state is not touched."""

    def __init__(self, problem: Lookahead):
        check_groups(problem.optimizer.param_groups)
        names = {parameter: name for name, parameter in problem.model.named_parameters()}
        self._steps = problem.steps
        self._groups: dict[str, Mapping[str, Any]] = {}
        self._moments: dict[str, Moments] = {}
        self._counts: dict[str, int] = {}
        for group in problem.optimizer.param_groups:
            for parameter in group["params"]:
                name = names[parameter]
                self._groups[name] = group
                state = problem.optimizer.state.get(parameter, {})
                self._moments[name], self._counts[name] = moments_of(state, parameter.detach(), group)
        self._tape: list[dict[str, _Taken]] = []
        self._adjoint: dict[str, Moments] = {}  # of the moments

    def step(self, weights: dict[str, Tensor], gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The stepped parameters as new leaves. A parameter without a gradient is not stepped, as in torch."""
        rule = self._steps[len(self._tape)].optimizer
        taken: dict[str, _Taken] = {}
        stepped = {}
        for name, group in self._groups.items():
            gradient = gradients.get(name)
            if gradient is None:
                continue
            weight = weights[name].detach()
            if isinstance(rule, Sgd):
                taken[name] = (weight, gradient, (), 0)
                new = weight - rule.lr * gradient
            else:
                self._counts[name] += 1
                taken[name] = (weight, gradient, self._moments[name], self._counts[name])
                new, self._moments[name] = adam_step(*taken[name], group)
            stepped[name] = new.requires_grad_()
        self._tape.append(taken)
        return stepped

    def pull_back(self, adjoint: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Undo the newest step: from the adjoint of the weights after it to those of its gradient and weights before.

        The Jacobian is autodiff's, of an elementwise function, one parameter at a time.
        """
        by_gradient, before = {}, dict(adjoint)
        taken = self._tape.pop()
        rule = self._steps[len(self._tape)].optimizer
        for name, (weight, gradient, moments, count) in taken.items():
            behind = adjoint.get(name)
            behind = torch.zeros_like(weight) if behind is None else behind
            if isinstance(rule, Sgd):
                by_gradient[name] = -rule.lr * behind
                before[name] = behind
                continue
            sources = [one.detach().requires_grad_() for one in (weight, gradient, *moments)]
            new, new_moments = adam_step(sources[0], sources[1], tuple(sources[2:]), count, self._groups[name])
            adjoints = [behind]
            adjoints += self._adjoint.get(name, [torch.zeros_like(one) for one in moments])
            found = torch.autograd.grad([new, *new_moments], sources, adjoints)
            # Where the second moment is still zero, no loss has ever touched the weight: it has no say in any gradient,
            # and a slope of 1 / eps there would drown the rest of the direction.
            by_gradient[name] = torch.where(new_moments[1] == 0, 0.0, found[1])
            before[name], self._adjoint[name] = found[0], tuple(found[2:])
        return by_gradient, before
