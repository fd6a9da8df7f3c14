"""The two optimisers that TAMT trained masks with, whose first steps differ from torch's AdamW.

AdamW of transformers 2.10 (TAMT-MLM, IMP) and BertAdam of pytorch-pretrained-bert (TAMT-KD). State and its names are
torch.optim.AdamW's (`step`, `exp_avg`, `exp_avg_sq`), so checkpoints and snapshots read all three alike.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class _Adam(torch.optim.Optimizer):
    def __init__(self, params: Iterable[Any], **defaults: Any):
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, self._state_of(parameter))
        return loss

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _update(self, parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__}._update")


def _moments(gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    beta1, beta2 = group["betas"]
    state["step"] += 1
    mean = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    return mean, square


class TransformersAdamW(_Adam):
    """AdamW as transformers 2.10 had it: eps is added to the square root *before* its bias is corrected.

    p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), then the decoupled decay p -= lr * decay * p.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        assert parameter.grad is not None
        mean, square = _moments(parameter.grad, group, state)
        beta1, beta2 = group["betas"]
        steps = int(state["step"])
        size = group["lr"] * math.sqrt(1 - beta2**steps) / (1 - beta1**steps)
        parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-size)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])


class BertAdam(_Adam):
    """BertAdam: no bias correction, each tensor's gradient clipped on its own, the decay added to the update.

    p -= lr * (m / (sqrt(v) + eps) + decay * p). `max_grad_norm` <= 0: no clipping. TAMT-KD decays its scores so.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm)

    def _update(self, parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        if group["max_grad_norm"] > 0:
            torch.nn.utils.clip_grad_norm_([parameter], group["max_grad_norm"])
        assert parameter.grad is not None
        mean, square = _moments(parameter.grad, group, state)
        update = mean / square.sqrt().add_(group["eps"])
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])
