"""Rule `mometas`: REINFORCE on softmax scores, rewarded by the drop of the held-out losses.

MOMETAS (Wu et al., Findings of EMNLP 2022): the reward R is the sum over objectives (with a target: the weighted sum
over its arms) of the relative drop of the meta-dev loss since the last update; one SGD step on
sum_t(-R log p_t(draw_t)) - gamma H(p), here in closed form. p_t is the policy that drew step t, an older one than p
where answers come with a lag.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import entropy_gradient, softmax
from mlpt.meta.rules.mixture import MixtureRule, Smoothed
from mlpt.storage.state import State

SMOOTHING = 1e-6  # added to the loss drop and to the old loss
THRESHOLD = 1e-3  # nats; a loss that moved no further earns nothing
LOWEST = -1.0  # a loss that exploded costs no more than this


class Mometas(MixtureRule):
    """One policy-gradient step on the scores at every update."""

    name = "mometas"
    needs_weights = True
    learns_from_draws = True

    class Config(Smoothed):
        """lr, gamma           step size on the scores, weight of the entropy (published: .1 and 2).
        dev                    `same` (default): the losses before and after are measured on the same texts with the
                               same corruption, which leaves the sampling noise out of the reward, for twice the
                               forward passes; `resampled` (the published code): each on its own fresh sample.
        dev_batches            meta-dev batches of each objective a measurement.
        dev_batch_size         texts in each; null: the training batch size.
        """

        rule: Literal["mometas"] = "mometas"
        lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)
        gamma: float = Field(default=2.0, ge=0, allow_inf_nan=False)
        dev: Literal["same", "resampled"] = "same"
        dev_batches: int = Field(default=1, ge=1)
        dev_batch_size: int | None = Field(default=None, ge=2)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._scores = [1.0] * len(self.arms)
        self._before: dict[str, float] | None = None  # meta-dev losses at the last update, in nats
        self._sample = 0  # the step whose sample gave them
        self._updates = 0

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        if self._before is None:
            self._before, self._sample = self._measure(context, context.step, context.step), context.step
            context.report["dev_loss"] = self._before
            return part
        if self.config.dev == "same":
            after = self._measure(context, self._sample, self._sample)
            next_before = self._measure(context, context.step, context.step)
        else:
            # The published code's first update sees the texts of the first measurement again, under fresh noise.
            texts = self._sample if self._updates == 0 else context.step
            after = next_before = self._measure(context, texts, context.step)
        number = len(context.target)  # equal weights give the published sum
        reward = sum(
            number * weight * relative_drop(self._before[name], after[name]) for name, weight in context.target.items()
        )
        counts = [evidence.draws.get(name, 0) for name in self.arms]
        expected = [evidence.expected.get(name, 0) for name in self.arms]
        context.report["dev_loss"] = after
        context.report["reward"] = reward
        self._scores = reinforce(self._scores, counts, expected, reward, self.config.lr, self.config.gamma)
        self._before, self._sample = next_before, context.step
        self._updates += 1
        return self.guarded(part, softmax(self._scores), context, self.config.smoothing)

    def _measure(self, context: MetaContext, texts: int, noise: int) -> dict[str, float]:
        return context.dev_losses(context.target, self.config.dev_batches, self.config.dev_batch_size, texts, noise)

    def state(self) -> State:
        return State({"scores": self._scores, "before": self._before, "sample": self._sample, "updates": self._updates})

    def load_state(self, state: State) -> None:
        values = state.values
        self._scores = list(values["scores"])
        self._before = None if values["before"] is None else dict(values["before"])
        self._sample, self._updates = values["sample"], values["updates"]


def relative_drop(before: float, after: float) -> float:
    """Reward of one objective: the share of its meta-dev loss that went away, in [-1, about 1]."""
    if abs(before - after) <= THRESHOLD:
        return 0.0
    return max((before - after + SMOOTHING) / (before + SMOOTHING), LOWEST)


def reinforce(
    scores: Sequence[float],
    counts: Sequence[float],
    expected: Sequence[float],
    reward: float,
    lr: float,
    gamma: float,
) -> list[float]:
    """The scores after one SGD step on J = -R sum_i n_i log p_i - gamma H(p), with p = softmax(scores).

    s <- s + lr * [R (n - sum_t p_t) - gamma p (log p + H)], with n the draws of each objective and `expected` the sum
    over the draws of the probabilities p_t in force. The published sum is K p: all K draws come from the newest policy.
    Centring older draws by that would add lr R K (p_old - p_new), which undoes the step before.
    """
    return [
        s + lr * (reward * (n - mean) + gamma * flattening)
        for s, n, mean, flattening in zip(scores, counts, expected, entropy_gradient(softmax(scores)), strict=True)
    ]
