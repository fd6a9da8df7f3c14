"""The optimiser of outer tensors: torch's own Adam or SGD, on copies, with a state that can be kept."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mlpt.storage.state import State

EPS = 1e-12  # hypergradients are small numbers


class OuterOptimizer:
    """One step at a time on named tensors; nothing that it is given is written to.

    kind   `adam` and `adamw` take steps of about lr whatever the scale of the gradient, `sgd` follows it.
    lr     may be set anew before every step.
    betas, eps, weight_decay   of Adam and AdamW.
    """

    def __init__(
        self,
        kind: Literal["adam", "adamw", "sgd"],
        lr: float,
        betas: tuple[float, float],
        eps: float = EPS,
        weight_decay: float = 0.0,
    ):
        self.kind, self.lr, self.betas = kind, lr, betas
        self.eps, self.weight_decay = eps, weight_decay
        self._moments: dict[str, Tensor] = {}  # exp_avg/<name>, exp_avg_sq/<name>
        self._steps = 0

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self._steps

    def step(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        """The tensors after one step down their gradients, and the optimiser's state then; `commit` makes it so."""
        moved = {name: one.detach().clone() for name, one in tensors.items()}
        optimizer: torch.optim.Optimizer
        if self.kind == "sgd":
            optimizer = torch.optim.SGD(moved.values(), lr=self.lr)
        else:
            made = torch.optim.Adam if self.kind == "adam" else torch.optim.AdamW
            decay = self.weight_decay
            optimizer = made(moved.values(), self.lr, self.betas, self.eps, weight_decay=decay, foreach=False)
        for name, one in moved.items():
            one.grad = gradients[name].to(one)
            if self.kind != "sgd" and self._steps:
                optimizer.state[one] = {
                    "step": torch.tensor(float(self._steps)),
                    "exp_avg": self._moments[f"exp_avg/{name}"].to(one, copy=True),
                    "exp_avg_sq": self._moments[f"exp_avg_sq/{name}"].to(one, copy=True),
                }
        optimizer.step()
        moments = {
            f"{key}/{name}": optimizer.state[one][key]
            for name, one in moved.items()
            if self.kind != "sgd"
            for key in ("exp_avg", "exp_avg_sq")
        }
        for one in moved.values():
            one.grad = None
        return moved, State({"steps": self._steps + 1}, moments)

    def state(self) -> State:
        """Steps and moments."""
        return State({"steps": self._steps}, dict(self._moments))

    def load_state(self, state: State) -> None:
        """Go on from `state()`, or from what `step` gave."""
        values: Mapping[str, Any] = state.values
        self._steps, self._moments = int(values["steps"]), dict(state.tensors)
