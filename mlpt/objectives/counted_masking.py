"""Masking a number of positions that the length gives, as MetaLMO does (Shen, 2021), instead of each by chance."""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.base import Inputs, Objective, PretrainingModel, attention_mask_of
from mlpt.objectives.capacity import most_chosen
from mlpt.objectives.mlm import skip_ids
from mlpt.objectives.prediction import predicted_tokens_loss
from mlpt.settings import Settings


class CountedMaskingConfig(Settings):
    """Which positions are chosen, and what becomes of them; the others of the chosen become the mask token."""

    probability: float = Field(default=0.15, ge=0, le=1, description="share of a row's tokens that is chosen")
    keep_share: float = Field(default=0.1, ge=0, le=1, description="of the chosen: they keep their token")
    random_share: float = Field(default=0.1, ge=0, le=1, description="of the chosen: they become a random token")

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.keep_share + self.random_share > 1:
            raise ValueError("keep_share and random_share together exceed 1; lower one")
        return self


class CountedMaskedLM(Objective):
    """Masked language modelling as MetaLMO has it: the first token of the text becomes the task token of masking, where
    the tokenizer has task tokens."""

    name = "counted_mlm"

    class Config(CountedMaskingConfig):
        """As of `mask_counted`."""

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        inputs, labels = mask_counted(batch.tokens, self.vocabulary, generator, self.config, mlm_token(self.vocabulary))
        positions = (labels != self.vocabulary.pad).view(-1).nonzero().squeeze(1)
        mask, targets = attention_mask_of(inputs, self.vocabulary.pad), labels.view(-1)[positions]
        return Inputs(inputs, mask, positions, targets, documents=batch.documents)

    def capacity(self, tokens: int) -> int:
        return most_chosen(tokens, self.config.probability)  # counts vary less than by single chances

    def example(self, batch: Batch, generator: torch.Generator) -> Inputs:
        return self.corrupt(batch, generator)

    def loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        return predicted_tokens_loss(model, inputs)


def mlm_token(vocabulary: Vocabulary) -> int | None:
    """The task token of masked language modelling: the first special token beyond the usual; None: there is none."""
    return vocabulary.extra[0] if vocabulary.extra else None


def mask_counted(
    tokens: Tensor,
    vocabulary: Vocabulary,
    generator: torch.Generator,
    config: CountedMaskingConfig,
    first: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Corrupt `tokens`; both results are (batch, length) int64 on the CPU: inputs, and labels that are
    `vocabulary.pad` where nothing is to be predicted.

    Of a row's n tokens that are not padding, floor(probability * n + u) are chosen without replacement, u uniform in
    [0, 1): the first token and separators too. Random tokens are uniform over all but padding, mask and task tokens.

    tokens  (batch, length) int64, padded on the right. Not changed.
    first   the token that stands first in the inputs whatever befalls that position, and that is its label where it was
            chosen (the task token of masked language modelling); None: the first token as any other.
    """
    original = tokens.clone()
    if first is not None:
        original[:, 0] = first
    real = original != vocabulary.pad
    chosen = some_of(real, drawn_count(real, config.probability, generator), generator)
    fate = torch.rand(original.shape, generator=generator)
    excluded = tuple(one for one in vocabulary.special_ids if one != vocabulary.sep)
    drawn = torch.randint(vocabulary.size - len(excluded), original.shape, generator=generator)
    random = skip_ids(drawn, excluded)
    corrupted = torch.where(fate < config.keep_share + config.random_share, random, vocabulary.mask)
    corrupted = torch.where(fate < config.keep_share, original, corrupted)
    inputs = torch.where(chosen, corrupted, original)
    if first is not None:
        inputs[:, 0] = first
    return inputs, torch.where(chosen, original, vocabulary.pad)


def drawn_count(eligible: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(batch,) int64: floor(share * n + u) of the n `eligible` positions (batch, length) of each row, u uniform in
    [0, 1)."""
    return (share * eligible.sum(1) + torch.rand(len(eligible), generator=generator)).long()


def some_of(among: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """(batch, length) bool: `counts` (batch,) random positions of `among`, all of them where there are fewer."""
    keys = torch.rand(among.shape, generator=generator).masked_fill(~among, 2.0)
    ranks = keys.argsort(dim=1).argsort(dim=1)  # a random order of the positions in question, the others last
    return among & (ranks < counts.unsqueeze(1))
