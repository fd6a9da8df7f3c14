"""Keeps the gradients of each arm that training makes anyway, for a meta-learner that follows the step just made.

Hooks on the parameters add each backward pass's own gradient, before it joins the others, to the sum of the arm that
the pass trains: nothing that training computes changes, and nothing is computed twice. A step's sums are those of all
ranks before the next begins, so that a run that was stopped between two of them goes on bit for bit.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mlpt.meta.snapshot import MadeStep, trainable
from mlpt.storage.state import State
from mlpt.training.group import Group

_TOTAL = "total"


class GradientRecorder:
    """The gradient that the optimiser took in the last step before every update, and those of the arms, averaged over
    the last steps.

    interval  steps between updates; None: nothing is kept.
    steps     over how many steps arms' gradients are averaged, at most `interval`; those left out do not count.

    `kept` is what the next update is told, on rank 0; None where the last step was left out, or where there was none.
    """

    def __init__(self, interval: int | None, group: Group, steps: int = 1):
        self._interval, self._group, self._steps = interval, group, steps
        self.kept: MadeStep | None = None
        self._before = _Sums()  # of the steps since the last update, on rank 0
        self._sums: dict[str, Tensor] = {}  # of an arm's weighted gradients, (n,) float32
        self._weights: dict[str, float] = {}
        self._size = 0
        self._now: tuple[Tensor, float] | None = None  # the sum of the pass under way, what undoes its loss's scale

    @contextlib.contextmanager
    def step(self, step: int, model: nn.Module) -> Iterator[None]:
        """The passes of a step run while the block lasts; none are kept but of the last steps before an update."""
        self.kept = None
        if not self._records(step):
            yield
            return
        self._sums, self._weights, self._size = {}, {}, 0
        handles = []
        for parameter in trainable(model):
            handles.append(parameter.register_hook(self._adder(self._size, parameter.numel())))
            self._size += parameter.numel()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def passes(self, arm: str, weight: float, scale: float) -> Iterator[None]:
        """A pass of `arm` runs while the block lasts; its loss is multiplied by `weight` and then by `scale`."""
        if self._size:
            if arm not in self._sums:
                self._sums[arm] = torch.zeros(self._size, device=self._group.device)
            self._weights[arm] = self._weights.get(arm, 0.0) + weight
            self._now = (self._sums[arm], 1 / scale)
        yield
        self._now = None

    def reopen(self) -> None:
        """The step under way begins anew: its passes so far do not count."""
        self._sums, self._weights = {}, {}

    def close(self, step: int, model: nn.Module, sound: bool, norm: Tensor, clip: float) -> None:
        """The optimiser has made the step, unless it was not `sound`. Every rank must call it.

        norm  of the whole gradient before it was clipped to `clip` (0: not).
        """
        if not self._records(step):
            return
        sums, weights, size = self._sums, self._weights, self._size
        self._sums, self._weights, self._size = {}, {}, 0
        arms = sorted({name for names in self._group.gather(list(weights)) for name in names})
        for arm in arms:
            found = torch.zeros(size, device=self._group.device) if arm not in sums else sums.pop(arm)
            weight = self._group.sum(torch.tensor(weights.get(arm, 0.0), dtype=torch.float64))
            found = self._group.sum(found)
            if sound and self._group.leads:
                self._before.add(arm, found, float(weight))
        if not self._ends(step):
            return
        means, self._before = self._before.means(), _Sums()
        if sound and self._group.leads:
            total = torch.zeros(size, device=self._group.device)
            at = 0
            for one in trainable(model):
                if one.grad is not None:
                    total[at : at + one.numel()] = one.grad.reshape(-1)
                at += one.numel()
            clipped = min(1.0, clip / float(norm)) if clip and float(norm) > 0 else 1.0
            arrays = {arm: mean.cpu().numpy() for arm, mean in means.items()}
            self.kept = MadeStep(total.cpu().numpy(), arrays, clipped)

    def state(self) -> State:
        """What a checkpoint between a step and the update must hold."""
        if self.kept is None:
            return self._before.state()
        tensors = {f"arm/{name}": torch.from_numpy(one) for name, one in self.kept.arms.items()}
        return State({"clipped": self.kept.clipped}, {_TOTAL: torch.from_numpy(self.kept.total), **tensors})

    def load_state(self, state: State) -> None:
        """The inverse of `state`."""
        self.kept, self._before = None, _Sums()
        if "clipped" in state.values:
            arrays = {name: one.numpy() for name, one in state.tensors.items()}
            arms = {name.removeprefix("arm/"): one for name, one in arrays.items() if name != _TOTAL}
            self.kept = MadeStep(arrays[_TOTAL], arms, state.values["clipped"])
        elif state and self._group.leads:
            self._before = _Sums.of(state, self._group.device)

    def _records(self, step: int) -> bool:
        return self._interval is not None and -(step + 1) % self._interval < self._steps

    def _ends(self, step: int) -> bool:
        return self._interval is not None and (step + 1) % self._interval == 0

    def _adder(self, start: int, size: int):
        def add(gradient: Tensor) -> None:
            if self._now is not None:
                into, scale = self._now
                into[start : start + size].add_(gradient.detach().reshape(-1), alpha=scale)

        return add


@dataclass
class _Sums:
    """Sums of arms' weighted gradients, (n,) float32, and of their weights."""

    _gradients: dict[str, Tensor] = field(default_factory=dict)
    _weights: dict[str, float] = field(default_factory=dict)

    def add(self, arm: str, gradient: Tensor, weight: float) -> None:
        if arm in self._gradients:
            self._gradients[arm].add_(gradient)
            self._weights[arm] += weight
        else:
            self._gradients[arm], self._weights[arm] = gradient, weight

    def means(self) -> dict[str, Tensor]:
        """Of each arm, in the sums' own memory."""
        return {arm: gradient.div_(self._weights[arm]) for arm, gradient in sorted(self._gradients.items())}

    def state(self) -> State:
        if not self._weights:
            return State()
        # Copied: the next step adds to them.
        return State(
            {"weights": dict(self._weights)}, {arm: one.to("cpu", copy=True) for arm, one in self._gradients.items()}
        )

    @classmethod
    def of(cls, state: State, device: torch.device) -> "_Sums":
        """The inverse of `state`."""
        gradients = {arm: one.to(device, copy=True) for arm, one in state.tensors.items()}
        return cls(gradients, dict(state.values["weights"]))
