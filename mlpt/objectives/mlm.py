"""Masked language modelling (Devlin et al., 2019, section 3.1), predicting at the masked positions only."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.base import Inputs, attention_mask_of
from mlpt.objectives.capacity import most_chosen, part_of
from mlpt.objectives.knobs import Choice, Knob
from mlpt.objectives.prediction import TokenPrediction
from mlpt.objectives.smoothing import SmoothingConfig
from mlpt.settings import Settings


class MaskingConfig(Settings):
    """What becomes of a position that was chosen.

    mask_share     share of the chosen positions that become the mask token.
    random_share   share that become a random token; the others keep theirs.
    random_tokens  where random tokens come from: `whole_vocabulary`, specials included, as BERT's, Hugging Face's
                   and MOMETAS's code do (the default, for comparability), or `non_special`.
    """

    mask_share: float = Field(default=0.8, ge=0, le=1)
    random_share: float = Field(default=0.1, ge=0, le=1)
    random_tokens: Literal["whole_vocabulary", "non_special"] = "whole_vocabulary"

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.mask_share + self.random_share > 1:
            raise ValueError("mask_share and random_share together exceed 1; lower one")
        return self


class MaskedLM(TokenPrediction):
    """Predict the tokens at positions chosen uniformly at random."""

    name = "mlm"

    class Config(MaskingConfig):
        """probability  chance of a non-special position to be chosen.
        smoothing    of the targets.
        """

        probability: float = Field(default=0.15, gt=0, le=1)
        smoothing: SmoothingConfig = SmoothingConfig()

    @classmethod
    def knob_settings(cls, settings: Mapping[str, Any]) -> dict[Knob, float | None]:
        return {**super().knob_settings(settings), "rate": settings["probability"]}

    def capacity(self, tokens: int) -> int:
        return part_of(tokens) if "rate" in self.learned else most_chosen(tokens, self.config.probability)

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        tokens = batch.tokens  # (batch, length)
        draw = torch.rand(tokens.shape, generator=generator)
        learns = "rate" in self.learned and batch.split == "train"
        fate = draw / (self.knobs.get("rate", self.config.probability) if learns else self.config.probability)
        inputs = masked_inputs(tokens, fate < 1, fate, self.vocabulary, self.config, generator)
        if learns:
            ordinary = ~self.vocabulary.is_special(tokens)
            inputs = replace(inputs, choice=Choice((fate < 1) & ordinary, ordinary, None))
        return self.smoothed(inputs, batch)


def masked_inputs(
    tokens: Tensor,
    chosen: Tensor,
    fate: Tensor,
    vocabulary: Vocabulary,
    config: MaskingConfig,
    generator: torch.Generator,
) -> Inputs:
    """Mask `tokens` (batch, length) where `chosen` (batch, length, bool) holds and the token is not special.

    fate  (batch, length) float, uniform in [0, 1) at the chosen positions: decides between mask, random and kept.
    """
    flat = tokens.reshape(-1)  # (batch * length,)
    positions = (chosen & ~vocabulary.is_special(tokens)).view(-1).nonzero().squeeze(1)  # (n,)
    targets = flat[positions]  # (n,)
    random_ids = random_tokens(len(positions), vocabulary, config.random_tokens, generator)  # (n,)
    replaced = replacements(targets, fate.reshape(-1)[positions], random_ids, vocabulary.mask, config)
    input_ids = flat.clone()
    input_ids[positions] = replaced
    return Inputs(input_ids.view(tokens.shape), attention_mask_of(tokens, vocabulary.pad), positions, targets)


def replacements(targets: Tensor, fate: Tensor, random_ids: Tensor, mask: int, config: MaskingConfig) -> Tensor:
    """What stands in place of the chosen tokens. All (n,): `fate` below mask_share gives `mask`,
    below mask_share + random_share the random id, otherwise the token itself."""
    kept_or_random = torch.where(fate < config.mask_share + config.random_share, random_ids, targets)
    return torch.where(fate < config.mask_share, mask, kept_or_random)


def random_tokens(
    count: int,
    vocabulary: Vocabulary,
    source: Literal["whole_vocabulary", "non_special"],
    generator: torch.Generator,
) -> Tensor:
    """(count,) int64 uniform token ids from `source`."""
    if source == "whole_vocabulary":
        return torch.randint(vocabulary.size, (count,), generator=generator)
    return skip_ids(
        torch.randint(vocabulary.size - len(vocabulary.special_ids), (count,), generator=generator),
        vocabulary.special_ids,
    )


def skip_ids(ids: Tensor, excluded: tuple[int, ...]) -> Tensor:
    """Map 0, 1, 2, ... onto the ids that are not in `excluded` (ascending), order kept."""
    for one in excluded:
        ids = ids + (ids >= one)
    return ids
