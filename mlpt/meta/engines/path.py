"""The path of the inner steps over the weights that train, and the way back along it.

Of each step only its gradient is kept: the weights and moments before it are made anew from the start, elementwise and
to the same bits, when the way back comes there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlpt.meta.engines.adam import Moments, adam_step, check_groups, moments_of
from mlpt.meta.engines.base import Lookahead, Sgd

_State = tuple[Tensor, Moments, int]  # a weight, its moments, and the count of Adam's steps that it has taken


class Path:
    """Inner steps forward, then as many pull-backs. The optimiser's own state is not touched."""

    def __init__(self, problem: Lookahead):
        check_groups(problem.optimizer.param_groups)
        names = {parameter: name for name, parameter in problem.model.named_parameters()}
        self._steps = problem.steps
        self._groups: dict[str, Mapping[str, Any]] = {}
        self._first: dict[str, _State] = {}
        for group in problem.optimizer.param_groups:
            for parameter in group["params"]:
                name = names[parameter]
                self._groups[name] = group
                state = problem.optimizer.state.get(parameter, {})
                self._first[name] = (parameter.detach(), *moments_of(state, parameter.detach(), group))
        self._now = dict(self._first)
        self._gradients: list[dict[str, Tensor]] = []
        self._adjoint: dict[str, Moments] = {}  # of the moments

    def step(self, gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """All trained parameters as new leaves. One without a gradient is not stepped, as in torch."""
        kept = {name: one for name in self._groups if (one := gradients.get(name)) is not None}
        self._gradients.append(kept)
        self._now = self._stepped(self._now, len(self._gradients) - 1)
        return self._leaves(self._now)

    def pull_back(
        self, adjoint: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Undo the newest step: from the adjoint of the weights after it to those of its gradient and weights before;
        and the trained weights before it, as new leaves.

        The Jacobian is autodiff's, of an elementwise function, one parameter at a time.
        """
        k = len(self._gradients) - 1
        self._now = self._first
        for earlier in range(k):
            self._now = self._stepped(self._now, earlier)
        by_gradient, before = {}, dict(adjoint)
        rule = self._steps[k].optimizer
        for name, gradient in self._gradients.pop().items():
            weight, moments, count = self._now[name]
            behind = adjoint.get(name)
            behind = torch.zeros_like(weight) if behind is None else behind
            if isinstance(rule, Sgd):
                by_gradient[name] = -rule.lr * behind
                before[name] = behind
                continue
            sources = [one.detach().requires_grad_() for one in (weight, gradient, *moments)]
            new, new_moments = adam_step(sources[0], sources[1], tuple(sources[2:]), count + 1, self._groups[name])
            adjoints = [behind]
            adjoints += self._adjoint.get(name, [torch.zeros_like(one) for one in moments])
            found = torch.autograd.grad([new, *new_moments], sources, adjoints)
            # Where the second moment is still zero, no loss has ever touched the weight: it has no say in any gradient,
            # and a slope of 1 / eps there would drown the rest of the direction.
            by_gradient[name] = torch.where(new_moments[1] == 0, 0.0, found[1])
            before[name], self._adjoint[name] = found[0], tuple(found[2:])
        return by_gradient, before, self._leaves(self._now)

    def _stepped(self, states: Mapping[str, _State], k: int) -> dict[str, _State]:
        """The states after step k."""
        rule, after = self._steps[k].optimizer, dict(states)
        for name, gradient in self._gradients[k].items():
            weight, moments, count = states[name]
            if isinstance(rule, Sgd):
                after[name] = (weight - rule.lr * gradient, moments, count)
            else:
                new, moments = adam_step(weight, gradient, moments, count + 1, self._groups[name])
                after[name] = (new, moments, count + 1)
        return after

    @staticmethod
    def _leaves(states: Mapping[str, _State]) -> dict[str, Tensor]:
        return {name: weight.detach().requires_grad_() for name, (weight, _, _) in states.items()}
