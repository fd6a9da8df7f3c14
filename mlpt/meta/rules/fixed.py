"""Rule `fixed`: the mixture that the user wrote down, always. With one objective it is plain pretraining."""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import field_validator

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Policy
from mlpt.meta.rules.base import MetaRule, check_objectives
from mlpt.settings import Settings


class Fixed(MetaRule):
    """Probabilities in proportion to `weights`; an objective without a weight is never drawn."""

    name = "fixed"
    learns = False

    class Config(Settings):
        """weights: objective -> any number >= 0, in proportion."""

        rule: Literal["fixed"] = "fixed"
        weights: dict[str, float]

        @field_validator("weights")
        @classmethod
        def _proportions(cls, weights: dict[str, float]) -> dict[str, float]:
            if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()) or not any(
                weights.values()
            ):
                raise ValueError("give numbers >= 0 of which at least one is above 0, for example {mlm: 3, cse: 1}")
            return weights

    def __init__(self, config: Config, objectives: Sequence[str]):
        super().__init__(config, objectives)
        check_objectives(list(config.weights), objectives, "meta.mixture.weights")

    def first_mixture(self) -> dict[str, float]:
        total = sum(self.config.weights.values())
        return {objective: self.config.weights.get(objective, 0.0) / total for objective in self.objectives}

    def update(self, policy: Policy, evidence: Evidence, context: MetaContext) -> Policy:
        return policy
