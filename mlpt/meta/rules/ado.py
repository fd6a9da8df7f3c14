"""Rule `ado`: more of the arms whose loss is about to fall fastest, by a power law fitted to each arm's losses so far.

After Adaptive Data Optimization (Jiang et al. 2024, arXiv 2410.11820): L_i(n) = e_i + b_i n^-a_i with n the steps of
the run; an arm's probability is in proportion to its prior mu_i times (its share of late) ^ credit, because a fall that
others brought about is not its own, times -dL_i/dn = a_i b_i n^(-a_i - 1). It looks at no target and costs no forward
pass.

Theirs fits logarithms with a Huber loss from a grid of starts; here a grid of exponents with the non-negative
least-squares solution of the rest. They average the mixture over all time; here `smoothing` keeps the old one's share.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator
from scipy.optimize import nnls

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import check_every_arm
from mlpt.meta.rules.fixed import in_proportion
from mlpt.meta.rules.mixture import MixtureRule, Smoothed
from mlpt.storage.state import State

EXPONENTS = np.geomspace(0.02, 2.0, 41)  # a_i
LEAST_POINTS = 4  # one more than the law has parameters


class Ado(MixtureRule):
    """The mixture of the newest fits; it stays until every arm has enough losses, and where no loss falls."""

    name = "ado"
    usual_floor = 0.01

    class Config(Smoothed):
        """prior      arm -> weight > 0, of every arm that trains, in proportion: the first mixture, and a factor of all
                   later ones; null: equal weights. The paper takes the domains' natural proportions.
        credit     exponent of an arm's recent share (published: .5).
        history    share of the old recent shares that an update keeps (published, per step: .9).
        floor      least probability of an arm; null: .01, or half an equal share where that is less.
        smoothing  share of the old mixture that an update keeps.
        start      step before which losses are not fitted and the mixture stays as it began.
        """

        rule: Literal["ado"] = "ado"
        prior: dict[str, float] | None = None
        credit: float = Field(default=0.5, ge=0, allow_inf_nan=False)
        history: float = Field(default=0.9, ge=0, lt=1)
        floor: float | None = Field(default=None, ge=0, lt=1)
        smoothing: float = Field(default=0.5, ge=0, lt=1)
        start: int = Field(default=100, ge=0)

        @field_validator("prior")
        @classmethod
        def _positive(cls, prior: dict[str, float] | None) -> dict[str, float] | None:
            if prior is not None and not all(weight > 0 for weight in prior.values()):
                raise ValueError("the weights of a prior are numbers above 0")
            return prior

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._prior = dict.fromkeys(arms, 1.0) if config.prior is None else config.prior
        check_every_arm(self._prior, arms, "meta.rules.mixture.prior", "weight")
        self._seen: dict[str, list[list[float]]] = {arm: [] for arm in arms}  # [step, nats]
        self._shares = list(self.first().values.values())  # lately

    def first(self) -> Part:
        return Part(in_proportion(self._prior, self.arms))

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        steps = math.fsum(evidence.draws.values())
        middle = context.step - steps / 2  # of the steps that the losses are means of
        begun = round(context.step - steps)  # a mean with steps before `start` in it is not fitted
        if middle > 0 and begun >= self.config.start:
            self._seen = {
                arm: [*seen, [middle, evidence.losses[arm]]] if arm in evidence.losses else seen
                for arm, seen in self._seen.items()
            }
        keep = self.config.history
        if steps:
            drawn = [evidence.expected.get(arm, 0.0) / steps for arm in self.arms]
            self._shares = [keep * old + (1 - keep) * new for old, new in zip(self._shares, drawn, strict=True)]
        if any(len(seen) < LEAST_POINTS for seen in self._seen.values()):
            return part
        rates = [rate(*power_law(self._seen[arm]), context.step) for arm in self.arms]
        context.report["rate"] = dict(zip(self.arms, rates, strict=True))
        pulls = [
            self._prior[arm] * share**self.config.credit * one
            for arm, share, one in zip(self.arms, self._shares, rates, strict=True)
        ]
        total = math.fsum(pulls)
        if not total > 0:
            return part
        return self.guarded(part, [pull / total for pull in pulls], context, self.config.smoothing)

    def state(self) -> State:
        return State({"seen": self._seen, "shares": self._shares})

    def load_state(self, state: State) -> None:
        self._seen = {arm: [list(point) for point in seen] for arm, seen in state.values["seen"].items()}
        self._shares = list(state.values["shares"])


def power_law(seen: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(e, b, a) of L(n) = e + b n^-a with e, b >= 0, by least squares over points (n, L), for a of `EXPONENTS`."""
    steps, losses = np.array(seen, dtype=np.float64).T
    best, found = math.inf, (0.0, 0.0, 0.0)
    for exponent in EXPONENTS:
        # In units of the last step, so that both columns are of order one.
        solution, residual = nnls(np.stack([np.ones_like(steps), (steps / steps[-1]) ** -exponent], axis=1), losses)
        if residual < best:
            best, found = residual, (float(solution[0]), float(solution[1] * steps[-1] ** exponent), float(exponent))
    return found


def rate(least: float, size: float, exponent: float, step: float) -> float:
    """-dL/dn of `power_law` at a step, in nats a step."""
    return exponent * size * step ** (-exponent - 1)
