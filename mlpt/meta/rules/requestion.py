"""Rule `requestion`: which tokens are hard is asked again while training goes on (continuous self-evolution).

Self-evolution learning (Zhong et al., ACL Findings 2023) questions a model once, before it trains on. Here every update
questions the snapshot about the very rows that training takes while the answer is in force, so that a guide is never
older than lag + interval steps, and the part holds those rows alone, however large the corpus.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from mlpt.data.batch import Batch
from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.base import Rule, RuleConfig
from mlpt.objectives import objective_class
from mlpt.objectives.fresh import Fresh
from mlpt.objectives.guided import GuidedMaskedLM
from mlpt.questioning.config import QuestionConfig
from mlpt.questioning.metrics import THRESHOLDS, Metric
from mlpt.questioning.scoring import score_tokens
from mlpt.randomness import numpy_generator
from mlpt.storage.state import State


class Requestion(Rule):
    """New scores at every update, for the objective with the guide `hard`."""

    name = "requestion"
    part = "guide"
    needs_weights = True
    needs_rows = True
    needs_progress = True

    class Config(RuleConfig):
        """metric     what says how hard a token is, as of `mlpt question`.
        threshold  scores above it are hard; two numbers: from the first, at the run's begin, to the second, at its end,
                   in a straight line (a curriculum); null: the metric's own.
        share      instead of a threshold: the hardest share of the tokens that are questioned, one number or two.
        blocks     share of the coming rows that are questioned; the others are masked by the scores of `hard.scores`,
                   where there are any, or as `hard.fallback` says. Where the learner is slower than training, it is
                   what to lower.
        stride     passes of `pseudo_loss`.
        """

        rule: Literal["requestion"] = "requestion"
        metric: Metric = "loss"
        threshold: tuple[float, float] | None = None
        share: tuple[float, float] | None = None
        blocks: float = Field(default=1.0, gt=0, le=1)
        stride: int = Field(default=7, ge=2)

        @field_validator("threshold", "share", mode="before")
        @classmethod
        def _constant(cls, value: Any) -> Any:
            """`0.1` is short for `[0.1, 0.1]`."""
            return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value

        @model_validator(mode="after")
        def _possible(self) -> Self:
            if self.threshold is not None and self.share is not None:
                raise ValueError("threshold and share both say what is hard; give one")
            if self.threshold is not None and not all(0 <= one < float("inf") for one in self.threshold):
                raise ValueError("thresholds are numbers from 0 up; scores begin at 0")
            if self.share is not None and not all(0 < one <= 1 for one in self.share):
                raise ValueError("a share is above 0 and at most 1")
            return self

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._warned = False

    def state(self) -> State:
        return State({"warned": self._warned})

    def load_state(self, state: State) -> None:
        self._warned = state.values["warned"]

    @classmethod
    def refuses(cls, settings: Any, config: Any) -> str | None:
        found = [
            name
            for name, values in config.objectives.items()
            if issubclass(objective_class(name, values), GuidedMaskedLM) and values.get("guide") == "hard"
        ]
        if len(found) != 1:
            return f"meta.rules.guide serves one objective 'guided' with guide=hard, and there are {len(found)}"
        return None

    def apply(self, part: Part, model: Any) -> None:
        for objective in model.objectives.values():
            if isinstance(objective, GuidedMaskedLM) and objective.config.guide == "hard":
                objective.obey(part)

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        objective = next(
            name
            for name, one in context.model.objectives.items()
            if isinstance(one, GuidedMaskedLM) and one.config.guide == "hard"
        )
        sources = dict.fromkeys(arm.source for arm in context.arms.values() if arm.objective == objective)
        asked = [
            self._questioned(source, evidence.rows[source], context) for source in sources if source in evidence.rows
        ]
        if not asked:
            return part
        rows = np.concatenate([one.rows for one, _ in asked])
        order = np.argsort(rows, kind="stable")
        rows, scores = rows[order], np.concatenate([found for _, found in asked])[order]
        pad = context.model.objectives[objective].vocabulary.pad
        tokens = sum(int((one.tokens != pad).sum()) for one, _ in asked)
        threshold = self._threshold(scores, tokens, context.progress)
        hard = int((scores.astype(np.float32) > threshold).sum())
        figures = {
            "rows": len(rows),
            "hard_share": hard / tokens,
            "mean_score": float(scores.sum(dtype=np.float64)) / tokens,
        }
        context.report["guide"] = {"threshold": threshold, **figures}
        if 100 * hard < len(rows) and not self._warned:
            warning = (
                f"step {context.step}: only {hard / tokens:.4%} of the tokens score above {threshold:g} "
                f"({self.config.metric}), fewer than one in a hundred rows; lower meta.rules.guide.threshold"
            )
            context.report["warnings"] = [*context.report.get("warnings", []), warning]
            self._warned = True
        return Fresh(rows, torch.from_numpy(scores), threshold).part(**figures)

    def _questioned(
        self, source: str, rows: NDArray[np.int64], context: MetaContext
    ) -> tuple[Batch, NDArray[np.float16]]:
        """The chosen rows with their numbers in the split, and their scores, (n, block_size)."""
        how = self.config
        if how.blocks < 1:
            drawn = numpy_generator(context.seed, f"requestion/{source}", context.step)
            rows = np.sort(drawn.choice(rows, max(1, round(how.blocks * len(rows))), replace=False))
        batch = context.sources[source].train.batch(rows)
        vocabulary = next(iter(context.model.objectives.values())).vocabulary
        asked = QuestionConfig(
            model="snapshot", blocks=source, out="part", metrics=(how.metric,), stride=how.stride, seed=context.seed
        )
        found = score_tokens(context.model, batch.tokens, batch.rows, vocabulary, asked, batch.documents)
        return batch, found[how.metric]

    def _threshold(self, scores: NDArray[np.float16], tokens: int, progress: float) -> float:
        """In force from now on; of a share, the lowest score that leaves at most that share of `tokens` above it."""
        how = self.config
        if how.share is None:
            first, last = how.threshold or (THRESHOLDS[how.metric],) * 2
            return float(first + (last - first) * progress)
        first, last = how.share
        place = scores.size - int((first + (last - first) * progress) * tokens) - 1
        return float(np.partition(scores, place, axis=None)[place]) if place >= 0 else 0.0
