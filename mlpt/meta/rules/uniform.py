"""Rule `uniform`: every objective equally likely, always. The baseline that a learned mixture has to beat."""

from typing import Literal

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Policy
from mlpt.meta.rules.base import MetaRule
from mlpt.settings import Settings


class Uniform(MetaRule):
    """Equal probabilities."""

    name = "uniform"
    learns = False

    class Config(Settings):
        """No settings beside the rule's name."""

        rule: Literal["uniform"] = "uniform"

    def update(self, policy: Policy, evidence: Evidence, context: MetaContext) -> Policy:
        return policy
