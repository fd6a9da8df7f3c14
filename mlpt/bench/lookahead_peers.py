"""The look-ahead of `mlpt bench hypergradient` by TorchOpt and Betty, where they are installed."""

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlpt.meta.engines.base import InnerLoss

_PACKAGES = {
    "TorchOpt": ("torchopt", "torchopt"),
    "Betty (darts)": ("betty", "betty-ml"),
    "Betty (sama)": ("betty", "betty-ml"),
}

Peer = Callable[[nn.Module, Mapping[str, Any], Tensor, list[InnerLoss], InnerLoss], Tensor]


def peers() -> dict[str, Peer | None]:
    """By name and version, what solves a look-ahead from a cold AdamW; None: not installed.

    Called with the model, AdamW's options, the logits, the inner losses and the outer loss; gives the gradient by the
    logits.
    """
    solvers: dict[str, Peer] = {"TorchOpt": _torchopt, "Betty (darts)": _betty("darts"), "Betty (sama)": _betty("sama")}
    found: dict[str, Peer | None] = {}
    for name, (module, package) in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            found[name] = None
        else:
            found[f"{name} {importlib.metadata.version(package)}"] = solvers[name]
    return found


def _torchopt(
    model: nn.Module, options: Mapping[str, Any], logits: Tensor, inner: list[InnerLoss], outer_loss: InnerLoss
) -> Tensor:
    import torchopt

    before = torchopt.extract_state_dict(model, by="reference")
    optimizer = torchopt.MetaAdamW(model, **options)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            for loss in inner:
                optimizer.step(loss(model, {"logits": logits}))
            return torch.autograd.grad(outer_loss(model, {"logits": logits}), logits)[0]
    finally:
        torchopt.recover_state_dict(model, before)


class _Logits(nn.Module):
    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.detach().clone())


def _adamw(model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Betty makes the optimiser anew from its defaults, of which torch's AdamW has one that it does not take."""
    return torch.optim.Adam(model.parameters(), decoupled_weight_decay=True, **options)


def _betty(kind: str) -> Peer:
    def solve(
        model: nn.Module, options: Mapping[str, Any], logits: Tensor, inner: list[InnerLoss], outer_loss: InnerLoss
    ) -> Tensor:
        from betty.configs import Config, EngineConfig
        from betty.engine import Engine
        from betty.problems import ImplicitProblem

        steps = iter(inner)
        found: list[Tensor] = []

        class Lower(ImplicitProblem):
            def get_batch(self) -> Any:
                return next(steps)

            def training_step(self, batch: InnerLoss) -> Tensor:
                return batch(self.module, {"logits": self.upper.module.logits})

        class Upper(ImplicitProblem):
            def get_batch(self) -> Any:
                return None

            def training_step(self, batch: None) -> Tensor:
                return outer_loss(self.lower.module, {"logits": self.module.logits})

            def grad_callback(self) -> None:
                found.append(self.module.logits.grad.detach().clone())

        kept = {name: one.clone() for name, one in model.state_dict().items()}
        weigher = _Logits(logits)
        upper = Upper("upper", Config(log_step=-1), weigher, torch.optim.SGD(weigher.parameters(), lr=0.0))
        config = Config(type=kind, unroll_steps=len(inner), log_step=-1, allow_unused=True)
        lower = Lower("lower", config, model, _adamw(model, options))
        links = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            logging.disable(logging.INFO)
            try:
                Engine([upper, lower], EngineConfig(train_iters=len(inner)), links).run()
            finally:
                logging.disable(logging.NOTSET)
                model.load_state_dict(kept)
                model.zero_grad()
        return found[-1]

    return solve
