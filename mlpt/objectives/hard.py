"""Masking the hard tokens of a text (self-evolution learning, SE4PLMs, Zhong et al., ACL Findings 2023).

Published: all hard tokens and no others, each replaced by the mask token, the same at every epoch; a text without hard
tokens is masked at random, 15 % of it, 80/10/10.
"""

from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.base import Inputs, attention_mask_of
from mlpt.objectives.counted_masking import drawn_count, some_of
from mlpt.objectives.mlm import MaskingConfig, random_tokens, replacements


class RandomMasking(MaskingConfig):
    """probability: the share of a text's eligible positions that are chosen: floor(probability * n + u), u uniform."""

    probability: float = Field(default=0.15, gt=0, le=1)


class HardTokens(MaskingConfig):
    """Which hard positions are chosen, and what becomes of them. The defaults are the published choices but for special
    tokens and the only hard token of a text.

    probability  chance of a hard position to be chosen. Below 1, which ones are chosen changes with the epoch.
    special      may special tokens be chosen: `out`; `in`, as published.
    spans        lengths (odd) of the span that a chosen position becomes the middle of, drawn with chances that fall by
                 `span_decay` from each to the next; none: the position alone, as published.
    span_decay   ratio of the chance of each of `spans` to that of the one before it.
    cap          the largest share of a text's eligible positions, at least one position: others are dropped at random.
    top_up       the least share: where fewer are chosen, random other positions are too.
    fallback     how texts without a hard token are masked (k = 0, a split that was not questioned); null: not at all.
    single       the only hard token of a text: `hard`, chosen like any; `published`: the published code takes it for a
                 fault, and masks it and as many random others as `fallback` says, all of them as `fallback` does (where
                 there are not as many, it alone is masked).
    """

    mask_share: float = Field(default=1.0, ge=0, le=1)
    random_share: float = Field(default=0.0, ge=0, le=1)
    probability: float = Field(default=1.0, gt=0, le=1)
    special: Literal["out", "in"] = "out"
    spans: tuple[int, ...] = ()
    span_decay: float = Field(default=0.8, gt=0, le=1)
    cap: float | None = Field(default=None, gt=0, le=1)
    top_up: float | None = Field(default=None, gt=0, le=1)
    fallback: RandomMasking | None = RandomMasking()
    single: Literal["hard", "published"] = "hard"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if any(length < 1 or length % 2 == 0 for length in self.spans):
            raise ValueError("spans have odd lengths, such as [1, 3, 5, 7]: their middle is a hard token")
        if self.cap is not None and self.top_up is not None and self.top_up > self.cap:
            raise ValueError(f"top_up {self.top_up:g} is above cap {self.cap:g}")
        if self.single == "published" and self.fallback is None:
            raise ValueError("single=published masks as the fallback does, and fallback is null")
        return self


class Chosen(NamedTuple):
    """positions  (batch, length) bool.
    at_random  (batch,) bool: the texts that are masked as the fallback masks; None: none.
    """

    positions: Tensor
    at_random: Tensor | None


def choose(
    tokens: Tensor, hard: Tensor, settings: HardTokens, vocabulary: Vocabulary, generator: torch.Generator
) -> Chosen:
    """The positions of `tokens` (batch, length) int64 to predict, given the `hard` ones (batch, length) bool.

    Pure. Padding is never chosen. Draws nothing where the settings leave nothing to chance.
    """
    eligible = tokens != vocabulary.pad if settings.special == "in" else ~vocabulary.is_special(tokens)
    chosen = hard & eligible
    guided = chosen.any(1)  # (batch,)
    at_random = ~guided
    if settings.single == "published":
        at_random = chosen.sum(1) <= 1
    if settings.probability < 1:
        chosen = chosen & (torch.rand(tokens.shape, generator=generator) < settings.probability)
    if settings.spans:
        chosen = _expanded(chosen, settings, generator) & eligible
    if settings.cap is not None:
        most = (settings.cap * eligible.sum(1)).long().clamp(min=1)  # (batch,)
        chosen = some_of(chosen, torch.minimum(chosen.sum(1), most), generator)
    if settings.top_up is not None:
        lacking = (drawn_count(eligible, settings.top_up, generator) - chosen.sum(1)) * guided
        chosen = chosen | some_of(eligible & ~chosen, lacking, generator)
    if settings.fallback is None or not at_random.any():
        return Chosen(chosen, None)
    return _with_fallback(chosen, hard & eligible, eligible, at_random, settings.fallback, generator)


def _with_fallback(
    chosen: Tensor, hard: Tensor, eligible: Tensor, rows: Tensor, settings: RandomMasking, generator: torch.Generator
) -> Chosen:
    """`chosen` with the texts `rows` masked at random besides their hard tokens."""
    places = rows.nonzero().squeeze(1)
    hard, free = hard[places], eligible[places] & ~hard[places]  # (m, length)
    wanted = drawn_count(eligible[places], settings.probability, generator)
    # Published: where fewer are free, choosing fails after the hard token was marked, and it alone is masked.
    fails = (wanted > free.sum(1)) & hard.any(1)
    chosen, rows = chosen.clone(), rows.clone()
    chosen[places] = hard | some_of(free, wanted.masked_fill(fails, 0), generator)
    rows[places] = ~fails
    return Chosen(chosen, rows)


def hard_inputs(
    tokens: Tensor, hard: Tensor, settings: HardTokens, vocabulary: Vocabulary, generator: torch.Generator
) -> Inputs:
    """Training inputs of `tokens` (batch, length) int64 that predict what `choose` chooses."""
    chosen, at_random = choose(tokens, hard, settings, vocabulary, generator)
    positions = chosen.view(-1).nonzero().squeeze(1)  # (n,)
    targets = tokens.reshape(-1)[positions]
    mask = attention_mask_of(tokens, vocabulary.pad)
    if settings.mask_share == 1 and at_random is None:
        return Inputs(tokens.masked_fill(chosen, vocabulary.mask), mask, positions, targets)
    replaced = _replaced(targets, settings, vocabulary, generator)
    if at_random is not None and settings.fallback is not None:
        here = at_random.repeat_interleave(chosen.sum(1))  # (n,)
        replaced = torch.where(here, _replaced(targets, settings.fallback, vocabulary, generator), replaced)
    input_ids = tokens.reshape(-1).index_copy(0, positions, replaced)
    return Inputs(input_ids.view(tokens.shape), mask, positions, targets)


def _replaced(targets: Tensor, masking: MaskingConfig, vocabulary: Vocabulary, generator: torch.Generator) -> Tensor:
    if masking.mask_share == 1:
        return torch.full_like(targets, vocabulary.mask)
    fate = torch.rand(targets.shape, generator=generator)
    drawn = random_tokens(len(targets), vocabulary, masking.random_tokens, generator)
    return replacements(targets, fate, drawn, vocabulary.mask, masking)


def _expanded(chosen: Tensor, settings: HardTokens, generator: torch.Generator) -> Tensor:
    """`chosen` positions as the middles of spans, cut at the ends of the text."""
    chances = settings.span_decay ** torch.arange(len(settings.spans), dtype=torch.float64)
    lengths = torch.tensor(settings.spans)
    drawn = torch.multinomial(chances, chosen.numel(), replacement=True, generator=generator).view(chosen.shape)
    radius = (lengths[drawn] // 2).masked_fill(~chosen, -1)  # (batch, length)
    wide = chosen.clone()
    for far in range(1, int(lengths.max()) // 2 + 1):
        reaches = radius >= far
        wide[:, far:] |= reaches[:, :-far]
        wide[:, :-far] |= reaches[:, far:]
    return wide
