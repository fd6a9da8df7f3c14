"""Engine `higher`: the inner steps unrolled with second-order autodiff (Grefenstette et al. 2019), the reference."""

from typing import Any

import higher
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlpt.meta.engines import adam  # noqa: F401 (registers AdamW with `higher`)
from mlpt.meta.engines.base import Engine, Hypergradient, Lookahead, leaves, named


class Higher(Engine):
    """The exact gradient, for any number of steps, whose count memory grows with. Attention runs on the MATH backend.

    One patched model is kept and reused: `higher` makes a class for every submodule it patches.
    """

    def __init__(self) -> None:
        self._of: nn.Module | None = None
        self._patched: Any = None

    def __call__(self, problem: Lookahead) -> Hypergradient:
        model = self._patch(problem.model)
        outer = list(problem.outer.values())
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            model.update_params([problem.outer.get(name, one) for name, one in leaves(problem.model).items()])
            optimizer = higher.optim.get_diff_optim(problem.optimizer, problem.model.parameters(), fmodel=model)
            try:
                for k, step in enumerate(problem.steps):
                    stepper = optimizer if step.optimizer is None else self._descent(problem, step.optimizer.lr)
                    callback = None if k >= problem.first_tracked else _constant
                    stepper.step(step.loss(model, problem.outer), grad_callback=callback)
                loss = problem.outer_loss(model, problem.outer)
                gradients = torch.autograd.grad(loss, outer, allow_unused=True)
            finally:
                self._forget(problem.model)
        return Hypergradient(loss.detach(), named(problem.outer, gradients))

    def _descent(self, problem: Lookahead, lr: float) -> Any:
        """Plain gradient descent over what the problem's optimiser trains, on the same patched model."""
        trained = [parameter for group in problem.optimizer.param_groups for parameter in group["params"]]
        plain = torch.optim.SGD(trained, lr=lr)
        return higher.optim.get_diff_optim(plain, problem.model.parameters(), fmodel=self._patched)

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


def _constant(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients of a step that is not followed."""
    return [None if one is None else one.detach() for one in gradients]
