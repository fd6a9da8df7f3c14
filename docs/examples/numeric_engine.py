"""An engine in one file: hypergradients of a few numbers by central differences of plain training.

mlpt pretrain meta.lookahead.engine=numeric_engine:Numeric
"""

import copy

import torch
from torch import Tensor

from mlpt.meta.engines.base import Engine, Hypergradient, Lookahead, Outer


class Numeric(Engine):
    """Two runs of the inner steps for each outer number, with torch's own optimiser: slow, and simple to believe."""

    step = 0.1  # of a logit; in float32 a smaller one would measure rounding

    def __call__(self, problem: Lookahead) -> Hypergradient:
        gradients = {name: torch.zeros_like(one) for name, one in problem.outer.items()}
        for name, gradient in gradients.items():
            for place in range(gradient.numel()):
                high, low = (self._after(problem, name, place, sign * self.step) for sign in (1, -1))
                gradient.view(-1)[place] = (high - low) / (2 * self.step)
        return Hypergradient(self._loss(problem, problem.outer), gradients)

    def _after(self, problem: Lookahead, name: str, place: int, by: float) -> Tensor:
        moved = problem.outer[name].detach().clone()
        moved.view(-1)[place] += by
        return self._loss(problem, {**problem.outer, name: moved})

    @staticmethod
    def _loss(problem: Lookahead, outer: Outer) -> Tensor:
        model, optimizer = copy.deepcopy((problem.model, problem.optimizer))
        for inner in problem.steps:
            optimizer.zero_grad()
            inner.loss(model, outer).backward()
            optimizer.step()
        return problem.outer_loss(model, outer).detach()
