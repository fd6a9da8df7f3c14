"""Masked language modelling where a guide says which positions are worth predicting.

`rare` and `all`: the `emlm` branch of MOMETAS (Wu et al., 2022), probability 0.5 on the positions of a boolean guide,
0 elsewhere; where MOMETAS's guide comes from is not published, and `rare` is our invention. `hard`: self-evolution
learning (Zhong et al., 2023), the tokens that `mlpt question` found hard, or that the rule `requestion` finds hard
while training goes on.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.data.counts import rare_tokens
from mlpt.data.token_scores import TokenScores
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.base import Inputs
from mlpt.objectives.capacity import most_chosen, part_of
from mlpt.objectives.fresh import Fresh
from mlpt.objectives.hard import HardTokens, hard_inputs
from mlpt.objectives.knobs import Choice, Knob
from mlpt.objectives.mlm import MaskingConfig, masked_inputs
from mlpt.objectives.prediction import TokenPrediction
from mlpt.objectives.smoothing import SmoothingConfig
from mlpt.storage.state import State

_log = logging.getLogger(__name__)


class HardGuide(HardTokens):
    """Where hard positions come from, and what `HardTokens` says of them.

    scores     what `mlpt question` wrote about the training blocks, a folder or URI; null: all scores come from a
               rule of meta.rules.guide, whose scores also go before those of the folder.
    metric     which of its scores; null: the first.
    threshold  scores above it are hard; null: the metric's own (`loss`: 0.1 nats, as published).
    share      instead of a threshold: the hardest share of the corpus's tokens.
    temperature  how sharp the threshold is, in units of the score: a position of a row that was scored is chosen with
               the chance probability * sigmoid((score - threshold) / temperature), anew at every epoch. null: those
               above it and no others, as published.
    """

    scores: str | None = None
    metric: str | None = None
    threshold: float | None = Field(default=None, ge=0)
    share: float | None = Field(default=None, gt=0, le=1)
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.threshold is not None and self.share is not None:
            raise ValueError("threshold and share both say what is hard; give one")
        if self.scores is None and (self.threshold, self.share, self.metric) != (None, None, None):
            raise ValueError(
                "metric, threshold and share read the scores of a folder, and scores is null; those of a rule are "
                "meta.rules.guide.metric, .threshold and .share"
            )
        return self


class GuidedMaskedLM(TokenPrediction):
    """Predict tokens at positions that a guide marks."""

    name = "guided"
    shown_as = "guide"

    class Config(MaskingConfig):
        """guide        `rare`: the rarest tokens of the corpus; `all`: every position; `hard`: see `HardGuide`.
        probability  of `rare` and `all`: chance of a marked position to be chosen.
        rare_share   share of the corpus's ordinary tokens that `rare` marks (more where counts tie). The defaults, 0.5
                     of 0.3, choose 15 % of the positions, as `mlm` does.
        hard         settings of the guide `hard`; it then says what becomes of a chosen position, too.
        smoothing    of the targets.
        """

        probability: float = Field(default=0.5, gt=0, le=1)
        guide: Literal["rare", "all", "hard"] = "rare"
        rare_share: float = Field(default=0.3, gt=0, le=1)
        hard: HardGuide | None = None
        smoothing: SmoothingConfig = SmoothingConfig()

        @model_validator(mode="after")
        def _one_guide(self) -> Self:
            if (self.guide == "hard") != (self.hard is not None):
                raise ValueError("guide=hard and hard={scores: FOLDER, ...} belong together")
            if self.hard is not None:
                for name in ("probability", "rare_share", *MaskingConfig.model_fields):
                    if getattr(self, name) != type(self).model_fields[name].default:
                        raise ValueError(f"{name} is of the other guides; with guide=hard it is hard.{name}")
            return self

    def __init__(self, config: Any, vocabulary: Vocabulary, token_counts: NDArray[np.int64] | None = None):
        """token_counts: (vocabulary,) how often each token occurs in the corpus; None: `prepare_data` asks for them."""
        super().__init__(config, vocabulary)
        self._rare: Tensor | None = None  # (vocabulary,) bool
        self._scores: TokenScores | None = None
        self._threshold = 0.0
        self.shown_split = "train" if config.guide == "hard" else "dev"  # scores are of training text
        self._fresh: Fresh | None = None
        if token_counts is not None:
            self._count(token_counts)

    @classmethod
    def knob_settings(cls, settings: Mapping[str, Any]) -> dict[Knob, float | None]:
        found = super().knob_settings(settings)
        hard = settings["hard"]
        if hard is None:
            return {**found, "rate": settings["probability"]}
        return {**found, "rate": hard["probability"], "temperature": hard["temperature"]}

    @classmethod
    def refuses(cls, settings: Mapping[str, Any], config: Any) -> str | None:
        hard = settings.get("hard")
        if hard is not None and hard.get("scores") is None and "guide" not in config.meta.rules:
            return (
                "nothing says which tokens are hard: give the objective hard.scores=FOLDER, which mlpt question makes, "
                "or a rule that finds them while training goes on, meta.rules.guide=requestion"
            )
        return None

    def obey(self, part: State) -> None:
        """Take over the policy's part `guide`: the newest scores of the rows that come."""
        self._fresh = Fresh.of(part)

    def prepare_data(self, train: Any) -> None:
        """Count the tokens of `train`, or open the scores of its tokens.

        Raises UserError for scores of other blocks or of another vocabulary, damaged ones, and a metric they lack.
        Warns where the threshold leaves almost nothing to mask.
        """
        if self.config.guide == "rare" and self._rare is None:
            self._count(train.token_counts())
        if self.config.guide == "hard" and self.config.hard.scores is not None:
            hard = self.config.hard
            self._scores = TokenScores.open(hard.scores, train)
            self._threshold = self._scores.threshold(hard.threshold, hard.metric)
            if hard.share is not None:
                self._threshold = self._scores.threshold_of(hard.share, hard.metric)
            if warning := self._scores.warning(self._threshold, hard.metric):
                _log.warning("objectives.guided: %s", warning)

    def capacity(self, tokens: int) -> int:
        how = self.config
        if how.guide == "all" and "rate" not in self.learned:
            return most_chosen(tokens, how.probability)
        return part_of(tokens)  # a text may be full of rare or of hard tokens

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        """The guide `hard` knows rows of the split that was questioned; all other texts are masked as its fallback
        says."""
        tokens = batch.tokens  # (batch, length)
        if self.config.guide == "hard":
            inputs = self._hard_inputs(batch, generator)
        else:
            learns = "rate" in self.learned and batch.split == "train"
            rate = self.knobs.get("rate", self.config.probability) if learns else self.config.probability
            fate = torch.rand(tokens.shape, generator=generator) / rate
            marked = self.guide(tokens)
            inputs = masked_inputs(tokens, marked & (fate < 1), fate, self.vocabulary, self.config, generator)
            if learns:
                marked = marked & ~self.vocabulary.is_special(tokens)
                inputs = replace(inputs, choice=Choice(marked & (fate < 1), marked, None))
        return self.smoothed(inputs, batch)

    def hard_tokens(self, batch: Batch) -> Tensor | None:
        if self.config.guide == "all":
            return None
        return self.hard_positions(batch) if self.config.guide == "hard" else self.guide(batch.tokens)

    def _hard_inputs(self, batch: Batch, generator: torch.Generator) -> Inputs:
        how, tokens = self.config.hard, batch.tokens
        learns = batch.split == "train" and bool({"rate", "temperature"} & {*self.learned})
        if how.temperature is None and not learns:
            return hard_inputs(tokens, self.hard_positions(batch), how, self.vocabulary, generator)
        candidates = tokens != self.vocabulary.pad if how.special == "in" else ~self.vocabulary.is_special(tokens)
        if how.temperature is None:
            choice = Choice(candidates, self.hard_positions(batch) & candidates, None)
        else:
            above = self._above(batch)
            choice = Choice(candidates, candidates & above.isfinite(), above)
        rate = self.knobs.get("rate", how.probability)
        chances = choice.chances(rate, self.knobs.get("temperature", how.temperature or 0.0))
        drawn = torch.rand(tokens.shape, generator=generator) < chances
        inputs = hard_inputs(tokens, drawn, how.model_copy(update={"probability": 1.0}), self.vocabulary, generator)
        return replace(inputs, choice=choice._replace(drawn=drawn)) if learns else inputs

    def _above(self, batch: Batch) -> Tensor:
        """(batch, length) float32: by how much each score is above the threshold; -inf in rows that nobody scored."""
        above = torch.full(batch.tokens.shape, float("-inf"))
        if self._scores is not None and batch.split == self._scores.question.split:
            found = self._scores.scores(batch.rows, self.config.hard.metric)
            above = torch.from_numpy(found).float() - self._threshold
        if self._fresh is not None and batch.split == "train":
            known, scores = self._fresh.find(batch.rows)
            above[known] = scores - self._fresh.threshold
        return above

    def guide(self, tokens: Tensor) -> Tensor:
        """(batch, length) bool for `tokens` (batch, length): the positions that `rare` or `all` marks."""
        if self.config.guide == "all":
            return ~self.vocabulary.is_special(tokens)
        if self._rare is None:
            raise ValueError("the guide 'rare' wants token counts: call prepare_data(training blocks) once")
        return self._rare[tokens]

    def hard_positions(self, batch: Batch) -> Tensor:
        """(batch, length) bool: where the scores of its rows are above the threshold; nowhere in another split, or in
        a row that nobody has scored."""
        if self.config.hard.scores is not None and self._scores is None:
            raise ValueError("the guide 'hard' wants prepare_data(training blocks) once")
        if self._scores is not None and batch.split == self._scores.question.split:
            hard = torch.from_numpy(self._scores.hard(batch.rows, self._threshold, self.config.hard.metric))
        else:
            hard = torch.zeros(batch.tokens.shape, dtype=torch.bool)
        if self._fresh is not None and batch.split == "train":
            known, scores = self._fresh.find(batch.rows)
            hard[known] = scores > self._fresh.threshold
        return hard

    def _count(self, counts: NDArray[np.int64]) -> None:
        self._rare = torch.from_numpy(rare_tokens(counts, self.config.rare_share, self.vocabulary.special_ids))
