"""Rule `staged`: mixtures that the user wrote down, one after another, each until a share of the run is done.

The simplest schedule (general text first, say, and the wanted kind at the end): a baseline for rules that find one.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator

from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import RuleConfig, check_arms
from mlpt.meta.rules.fixed import check_weights, in_proportion
from mlpt.meta.rules.mixture import MixtureRule
from mlpt.settings import Settings


class Stage(Settings):
    """until    share of the run's steps at which the stage ends, above that of the stage before; of the last one 1.
    weights  arm -> any number >= 0, in proportion; an arm without one is not drawn.
    """

    until: float = Field(default=1.0, gt=0, le=1)
    weights: dict[str, float]

    @field_validator("weights")
    @classmethod
    def _proportions(cls, weights: dict[str, float]) -> dict[str, float]:
        return check_weights(weights)


class Staged(MixtureRule):
    """The mixture of the stage in which the update is adopted: a stage begins at the first adoption at or after its
    share (every meta.interval steps, meta.lag after each update)."""

    name = "staged"
    needs_progress = True

    class Config(RuleConfig):
        """stages  in order, such as [{until: .7, weights: {mlm@wiki: 1}}, {weights: {mlm@wiki: 1, mlm@legal: 3}}]."""

        rule: Literal["staged"] = "staged"
        stages: list[Stage] = Field(min_length=1)

        @field_validator("stages")
        @classmethod
        def _in_order(cls, stages: list[Stage]) -> list[Stage]:
            ends = [stage.until for stage in stages]
            if ends[-1] != 1 or any(one >= after for one, after in pairwise(ends)):
                raise ValueError(f"stages end at rising shares of the run, the last at 1, not at {ends}")
            return stages

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        for number, stage in enumerate(config.stages):
            check_arms(stage.weights, arms, f"meta.rules.mixture.stages[{number}].weights")

    def first(self) -> Part:
        return Part(in_proportion(self.config.stages[0].weights, self.arms))

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        stages = self.config.stages
        stage = next((one for one in stages if context.progress < one.until), stages[-1])
        mixture = in_proportion(stage.weights, self.arms)
        return part if mixture == part.values else self.becomes(list(mixture.values()), context)
