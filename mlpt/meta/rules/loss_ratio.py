"""Rule `loss_ratio`: more of the arms whose training loss has come down least, relative to where it began.

p_i is in proportion to r_i ^ power, with r_i = L_i / L_i(first): the inverse training rate of GradNorm (Chen et al.
2018, section 3.2), there what gradient norms are to follow, here draws. It looks at no target and costs nothing.
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

SMALLEST = 1e-12  # nats; lest a solved arm has no logarithm


class LossRatio(MixtureRule):
    """The mixture of the newest losses; an arm not drawn since the last update keeps its ratio, at first 1."""

    name = "loss_ratio"
    usual_floor = 0.02

    class Config(Smoothed):
        """power      how sharply the mixture follows the ratios; 0: uniform (GradNorm's alpha: .12 to 1.5).
        floor      least probability of an arm; null: .02, or half an equal share where that is less.
        smoothing  share of the old mixture that an update keeps.
        """

        rule: Literal["loss_ratio"] = "loss_ratio"
        power: float = Field(default=1.0, ge=0, allow_inf_nan=False)
        floor: float | None = Field(default=None, ge=0, lt=1)
        smoothing: float = Field(default=0.5, ge=0, lt=1)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._first: dict[str, float] = {}
        self._ratios = dict.fromkeys(arms, 1.0)

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        if not evidence.losses:
            return part
        losses = {arm: max(loss, SMALLEST) for arm, loss in evidence.losses.items()}
        self._first = {**losses, **self._first}
        self._ratios = {**self._ratios, **{arm: loss / self._first[arm] for arm, loss in losses.items()}}
        context.report["loss_ratio"] = dict(self._ratios)
        scores = [self.config.power * math.log(self._ratios[arm]) for arm in self.arms]
        return self.guarded(part, softmax(scores), context, self.config.smoothing)

    def state(self) -> State:
        return State({"first": self._first, "ratios": self._ratios})

    def load_state(self, state: State) -> None:
        self._first, self._ratios = dict(state.values["first"]), dict(state.values["ratios"])
