"""Rule `doremi`: more of the arms on which the model is furthest behind a reference, as in DoReMi (Xie et al. 2023,
arXiv 2305.10429, algorithm 1): alpha_i <- alpha_i exp(eta e_i), normalised and mixed with the uniform mixture, with the
excess e_i = max(0, L_i - reference_i).

Their excess is clipped token by token; here it is the excess of an arm's mean training loss since the last update. The
references are losses that the user gives: of a run with fixed shares, say, from its summary.
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import check_every_arm
from mlpt.meta.rules.mixture import MixtureRule, Smoothed, with_floor
from mlpt.storage.state import State


class Doremi(MixtureRule):
    """One step of exponentiated gradient on the excess losses at every update; it looks at no target.

    Reports `average_mixture`, over all updates: what the paper trains the large model with.
    """

    name = "doremi"
    usual_floor = 0.001

    class Config(Smoothed):
        """reference  arm -> nats, of every arm that trains.
        lr         the paper's eta (published: 1).
        floor      least probability of an arm (published: .001 / number of arms), which enters the next update; null:
                   .001, or half an equal share where that is less.
        """

        rule: Literal["doremi"] = "doremi"
        reference: dict[str, float]
        lr: float = Field(default=1.0, gt=0, allow_inf_nan=False)
        floor: float | None = Field(default=None, ge=0, lt=1)

        @field_validator("reference")
        @classmethod
        def _nats(cls, reference: dict[str, float]) -> dict[str, float]:
            if not all(math.isfinite(loss) and loss >= 0 for loss in reference.values()):
                raise ValueError("reference losses are numbers >= 0, in nats")
            return reference

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        check_every_arm(config.reference, arms, "meta.rules.mixture.reference", "loss")
        self._alpha = [1 / len(arms)] * len(arms)
        self._excess = [0.0] * len(arms)
        self._sum = [0.0] * len(arms)  # of alpha over the updates
        self._updates = 0

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        if not evidence.losses:
            return part
        reference = self.config.reference
        excess = [
            max(0.0, evidence.losses[arm] - reference[arm]) if arm in evidence.losses else old  # not drawn: as it was
            for arm, old in zip(self.arms, self._excess, strict=True)
        ]
        highest = max(excess)
        grown = [a * math.exp(self.config.lr * (e - highest)) for a, e in zip(self._alpha, excess, strict=True)]
        total = math.fsum(grown)
        share = {arm: one / total for arm, one in zip(self.arms, grown, strict=True)}
        self._alpha = list(with_floor(share, self.floor).values())
        self._excess, self._updates = excess, self._updates + 1
        self._sum = [old + new for old, new in zip(self._sum, self._alpha, strict=True)]
        context.report["excess"] = dict(zip(self.arms, excess, strict=True))
        average = [one / self._updates for one in self._sum]
        context.report["average_mixture"] = dict(zip(self.arms, average, strict=True))
        keep = self.config.smoothing
        old = [part.values[arm] for arm in self.arms]
        return self.becomes([keep * a + (1 - keep) * b for a, b in zip(old, self._alpha, strict=True)], context)

    def state(self) -> State:
        return State({"alpha": self._alpha, "excess": self._excess, "sum": self._sum, "updates": self._updates})

    def load_state(self, state: State) -> None:
        values = state.values
        self._alpha, self._excess = list(values["alpha"]), list(values["excess"])
        self._sum, self._updates = list(values["sum"]), values["updates"]
