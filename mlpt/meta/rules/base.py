"""What a meta rule is: it turns evidence about training into the next policy, and its state is small and exact."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Policy
from mlpt.settings import Settings


class MetaRule:
    """One rule. Subclasses set `name` and `Config` (with the field `rule`) and define `first_mixture` and `update`.

    learns             False: the mixture never changes, so that no learner need run for it.
    needs_weights      `update` forwards the model: the learner loads the snapshot first.
    needs_moments      `update` looks ahead: snapshots must carry AdamW's moments.
    learns_from_draws  what it learns lies in how far chance took the draws from their probabilities; a run whose steps
                       train every objective by its share (train.draw=weighted) has nothing for it.

    A rule changes its own state at the end of `update` only: an update that fails leaves it as it was.
    """

    name: ClassVar[str]
    learns: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = False
    needs_moments: ClassVar[bool] = False
    learns_from_draws: ClassVar[bool] = False

    class Config(Settings):
        """No settings."""

    def __init__(self, config: Any, objectives: Sequence[str]):
        self.config = config
        self.objectives = list(objectives)

    def first_mixture(self) -> dict[str, float]:
        """Probability of each objective before the first update; sums to 1."""
        return {objective: 1 / len(self.objectives) for objective in self.objectives}

    def update(self, policy: Policy, evidence: Evidence, context: MetaContext) -> Policy:
        """The policy after this evidence (the learner counts versions). Figures for the log go to `context.report`."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def state(self) -> dict[str, Any]:
        """JSON values from which `load_state` goes on bit for bit."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Those parts of the state that are tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` and `tensors` gave."""


def check_objectives(names: Sequence[str], objectives: Sequence[str], setting: str) -> None:
    """Raise `UserError` when `setting` names an objective that the run does not have."""
    for name in names:
        if name not in objectives:
            raise UserError(f"{setting} names '{name}', which is not an objective of this run: {', '.join(objectives)}")


def softmax(scores: Sequence[float]) -> list[float]:
    """exp(s) / sum exp(s), in float64."""
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy_of(probabilities: Iterable[float]) -> float:
    """Entropy in nats."""
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def entropy_gradient(probabilities: Sequence[float]) -> list[float]:
    """dH/ds of p = softmax(s): -p (log p + H)."""
    entropy = entropy_of(probabilities)
    # A probability that underflowed has p log p = 0, as in the limit.
    return [-p * ((math.log(p) if p > 0 else 0.0) + entropy) for p in probabilities]


def with_floor(mixture: Mapping[str, float], floor: float) -> dict[str, float]:
    """floor + (1 - n floor) p: every probability at least `floor`, the sum still 1.

    Raises `UserError` when n objectives cannot all have it.
    """
    rest = 1 - len(mixture) * floor
    if rest < 0:
        raise UserError(
            f"meta.mixture.floor={floor} is too much for {len(mixture)} objectives: at most {1 / len(mixture):g}"
        )
    return {name: floor + rest * probability for name, probability in mixture.items()}
