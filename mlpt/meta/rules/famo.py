"""Rule `famo`: even progress on every objective, from held-out losses before and after; no gradients are stored.

FAMO (Liu et al., NeurIPS 2023, algorithm 1): weights z = softmax(xi); the direction sum_i z_i grad log L_i; xi moves by
-beta (J^T (log L_before - log L_after) + gamma xi), J the softmax's Jacobian. Drawing objective i with a probability in
proportion to z_i / L_i follows that direction in expectation, so this is the mixture.
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import softmax
from mlpt.meta.rules.mixture import MixtureRule, Smoothed
from mlpt.storage.state import State


class Famo(MixtureRule):
    """One step on the task weights at every update, with plain SGD as in the paper (its code takes Adam)."""

    name = "famo"
    usual_floor = 0.02
    needs_weights = True

    class Config(Smoothed):
        """lr, decay       the paper's beta and gamma.
        smallest_loss   nats; a loss below counts as this much, lest a solved objective take all the draws.
        floor           least probability of an objective; null: .02, or half an equal share where that is less.
        dev_batches     meta-dev batches of each objective a measurement, the same before and after.
        dev_batch_size  texts in each; null: the training batch size.
        """

        rule: Literal["famo"] = "famo"
        lr: float = Field(default=1.0, gt=0, allow_inf_nan=False)
        decay: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
        smallest_loss: float = Field(default=0.05, gt=0, allow_inf_nan=False)
        floor: float | None = Field(default=None, ge=0, lt=1)
        dev_batches: int = Field(default=1, ge=1)
        dev_batch_size: int | None = Field(default=None, ge=2)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._logits = [0.0] * len(self.arms)
        self._before: dict[str, float] | None = None
        self._sample = 0

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        current = self._measure(context, context.step)
        logits = self._logits
        if self._before is not None:
            after = self._measure(context, self._sample)
            drops = [math.log(self._before[name] / after[name]) for name in self.arms]
            logits = step_logits(logits, drops, self.config.lr, self.config.decay)
        weights = [z / current[name] for z, name in zip(softmax(logits), self.arms, strict=True)]
        total = math.fsum(weights)
        context.report["dev_loss"] = current
        self._logits, self._before, self._sample = logits, current, context.step
        return self.guarded(part, [weight / total for weight in weights], context, self.config.smoothing)

    def _measure(self, context: MetaContext, sample: int) -> dict[str, float]:
        losses = context.dev_losses(self.arms, self.config.dev_batches, self.config.dev_batch_size, sample, sample)
        return {name: max(loss, self.config.smallest_loss) for name, loss in losses.items()}

    def state(self) -> State:
        return State({"logits": self._logits, "before": self._before, "sample": self._sample})

    def load_state(self, state: State) -> None:
        values = state.values
        self._logits, self._sample = list(values["logits"]), values["sample"]
        self._before = None if values["before"] is None else dict(values["before"])


def step_logits(logits: Sequence[float], drops: Sequence[float], lr: float, decay: float) -> list[float]:
    """xi - beta (J^T d + gamma xi), with (J^T d)_i = z_i (d_i - sum_j z_j d_j)."""
    z = softmax(logits)
    mean = math.fsum(share * drop for share, drop in zip(z, drops, strict=True))
    return [xi - lr * (share * (drop - mean) + decay * xi) for xi, share, drop in zip(logits, z, drops, strict=True)]
