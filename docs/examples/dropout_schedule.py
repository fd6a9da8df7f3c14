"""A rule for a part of the policy that mlpt knows nothing of: dropout that falls while training goes on.

mlpt pretrain meta.rules.dropout="{rule: 'dropout_schedule:DropoutSchedule', first: 0.1, last: 0, steps: 1000}"
"""

from typing import Any, Literal

from pydantic import Field
from torch import nn

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import Rule, RuleConfig


class DropoutSchedule(Rule):
    """Dropout from `first` to `last` in a straight line over `steps` steps, moved at every update."""

    name = "dropout_schedule:DropoutSchedule"
    part = "dropout"

    class Config(RuleConfig):
        """first, last  dropout at step 0, and from step `steps` on."""

        rule: Literal["dropout_schedule:DropoutSchedule"] = "dropout_schedule:DropoutSchedule"
        first: float = Field(default=0.1, ge=0, lt=1)
        last: float = Field(default=0.0, ge=0, lt=1)
        steps: int = Field(default=1000, ge=1)

    def first(self) -> Part:
        return Part({"p": self.config.first})

    def apply(self, part: Part, model: Any) -> None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = part.values["p"]

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        share = min(1.0, context.step / self.config.steps)
        p = (1 - share) * self.config.first + share * self.config.last
        context.report["dropout"] = p
        return Part({"p": p})
