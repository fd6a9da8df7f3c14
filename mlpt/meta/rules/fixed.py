"""Rule `fixed`: the mixture that the user wrote down, always. With one arm it is plain pretraining."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import field_validator

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import RuleConfig, check_arms
from mlpt.meta.rules.mixture import MixtureRule


class Fixed(MixtureRule):
    """Probabilities in proportion to `weights`; an arm without a weight is never drawn."""

    name = "fixed"
    learns = False

    class Config(RuleConfig):
        """weights: arm -> any number >= 0, in proportion."""

        rule: Literal["fixed"] = "fixed"
        weights: dict[str, float]

        @field_validator("weights")
        @classmethod
        def _proportions(cls, weights: dict[str, float]) -> dict[str, float]:
            return check_weights(weights)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        check_arms(config.weights, arms, "meta.rules.mixture.weights")

    def first(self) -> Part:
        return Part(in_proportion(self.config.weights, self.arms))

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        return part


def check_weights(weights: dict[str, float]) -> dict[str, float]:
    """These weights. Raises `ValueError` unless they are numbers >= 0, one of them above 0."""
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()) or not any(weights.values()):
        raise ValueError("give numbers >= 0 of which at least one is above 0, for example {mlm: 3, cse: 1}")
    return weights


def in_proportion(weights: Mapping[str, float], arms: Sequence[str]) -> dict[str, float]:
    """The probability of each arm, in proportion to its weight; 0 without one."""
    total = sum(weights.values())
    return {arm: weights.get(arm, 0.0) / total for arm in arms}
