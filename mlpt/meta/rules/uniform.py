"""Rule `uniform`: every arm equally likely, always. The baseline that a learned mixture has to beat."""

from typing import Literal

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import RuleConfig
from mlpt.meta.rules.mixture import MixtureRule


class Uniform(MixtureRule):
    """Equal probabilities."""

    name = "uniform"
    learns = False

    class Config(RuleConfig):
        """No settings beside the rule's name."""

        rule: Literal["uniform"] = "uniform"

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        return part
