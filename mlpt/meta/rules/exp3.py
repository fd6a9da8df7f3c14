"""Rule `exp3`: a bandit that draws more of what the model still finds hard, at no cost beyond the training losses.

After Online Data Mixing (Albalak et al. 2023): Exp3 with importance-weighted, smoothed rewards and a decaying
exploration rate; their arms are data domains, here they are objectives.
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import softmax
from mlpt.meta.rules.mixture import Guarded, MixtureRule
from mlpt.storage.state import State


class Exp3(MixtureRule):
    """Probabilities (1 - n e_t) softmax(e_{t-1} R) + e_t, with e_t = min(1/n, sqrt(ln n / (n t))) at update t.

    An update is one turn of the bandit; the first few (n = 4: five) explore uniformly.
    """

    name = "exp3"

    class Config(Guarded):
        """smoothing  share of the old reward estimate that an update keeps (published: .9).
        reward     `loss` (published): the mean training loss; `relative` (default): divided by the objective's first
                   one, because objectives, unlike domains, have losses on scales of their own.
        """

        rule: Literal["exp3"] = "exp3"
        smoothing: float = Field(default=0.9, ge=0, lt=1)
        reward: Literal["loss", "relative"] = "relative"

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._rewards = [0.0] * len(self.arms)
        self._first: dict[str, float] = {}  # first training loss of each objective, the scale of `relative`
        self._updates = 0

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        if not any(evidence.draws.values()):
            return part
        first = {**evidence.losses, **self._first}
        rewards = list(self._rewards)
        for index, name in enumerate(self.arms):
            draws, expected = evidence.draws.get(name, 0), evidence.expected.get(name, 0)
            if draws == 0 or expected == 0 or name not in evidence.losses:
                continue  # not drawn: its estimate stays, as published
            loss = evidence.losses[name]
            reward = loss / max(first[name], 1e-12) if self.config.reward == "relative" else loss
            # Drawn n times with probabilities p_t: the unbiased estimate of its reward a draw is reward * n / sum p_t.
            unbiased = reward * draws / expected
            rewards[index] = self.config.smoothing * rewards[index] + (1 - self.config.smoothing) * unbiased
        self._updates, self._rewards, self._first = self._updates + 1, rewards, first
        exploration, sharpness = self._rate(self._updates + 1), self._rate(self._updates)
        n = len(self.arms)
        probabilities = softmax([sharpness * one for one in rewards])
        context.report["reward"] = dict(zip(self.arms, rewards, strict=True))
        mixture = [(1 - n * exploration) * one + exploration for one in probabilities]
        return self.guarded(part, mixture, context)

    def _rate(self, t: int) -> float:
        n = len(self.arms)
        return min(1 / n, math.sqrt(math.log(n) / (n * t)))

    def state(self) -> State:
        return State({"rewards": self._rewards, "first": self._first, "updates": self._updates})

    def load_state(self, state: State) -> None:
        values = state.values
        self._rewards, self._first, self._updates = list(values["rewards"]), dict(values["first"]), values["updates"]
