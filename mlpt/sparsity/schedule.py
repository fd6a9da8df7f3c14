"""When masks change: iterative magnitude pruning (IMP) and TAMT's threshold resets.

IMP after "BERT Tickets" (Chen et al. 2020) as TAMT runs it: each matrix loses a fraction of its *remaining* weights
every `interval` updates, so that the total goes 10 %, 20 %, ...
"""

from fractions import Fraction
from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor

from mlpt.settings import Settings
from mlpt.sparsity.making import lowest

PUBLISHED_INTERVAL = 2792  # updates between two prunings, a fifth of an epoch of WikiText-103 at 16 x 512 tokens


class IterativeConfig(Settings):
    """Iterative magnitude pruning.

    interval           updates between two prunings.
    levels             total sparsity after each; the first is pruned before any update.
    rewind             "paper": after each pruning the encoder body goes back to its starting weights (heads do not);
                       "code": weights train on, as the published code does, whose copy aliases the live weights.
                       "paper" is the default because it is the algorithm that the paper and its sources describe.
    restart_optimizer  a new optimiser and a schedule from its beginning after each pruning, as published.
    """

    interval: int = Field(PUBLISHED_INTERVAL, ge=1)
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    rewind: Literal["paper", "code"] = "paper"
    restart_optimizer: bool = True

    @field_validator("levels")
    @classmethod
    def _rise(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if not levels or any(not 0 < level < 1 for level in levels) or sorted(set(levels)) != list(levels):
            raise ValueError("levels must rise strictly inside (0, 1)")
        return levels

    def level_at(self, step: int) -> int | None:
        """Index of the level that is pruned once `step` updates are done; None when none is."""
        index, rest = divmod(step, self.interval)
        return index if rest == 0 and index < len(self.levels) else None


class ResetConfig(Settings):
    """When thresholds are reset to the exact sparsity. What is measured and saved has it at any time.

    cadence     "interval": after every `interval` updates (published for TAMT-MLM, 1000). "before": one update earlier
                and at the first (published for TAMT-KD: 1, 99, 199, ... with interval 100) and at each epoch's end.
    interval    updates between resets.
    first_step  also after the first update ("before" always does), as `--logging_first_step` did.
    """

    cadence: Literal["interval", "before"] = "interval"
    interval: int = Field(1000, ge=1)
    first_step: bool = False

    def due(self, step: int, steps_per_epoch: int | None = None) -> bool:
        """Whether thresholds are reset once `step` (from 1) updates are done."""
        if self.cadence == "interval":
            return step % self.interval == 0 or (self.first_step and step == 1)
        ends_epoch = steps_per_epoch is not None and step % steps_per_epoch == 0
        return step == 1 or (step + 1) % self.interval == 0 or ends_epoch


def fraction_of_remaining(before: float, after: float) -> float:
    """The fraction of the weights left at sparsity `before` that must go to reach `after`; published: 1/(10 - j)."""
    old, new = (Fraction(level).limit_denominator(10**6) for level in (before, after))
    return float((new - old) / (1 - old))


def prune_further(weight: Tensor, kept: Tensor, fraction: float) -> Tensor:
    """The bool mask left when round(`fraction` * remaining) more of the `kept` weights go, the smallest first."""
    remaining = weight.detach()[kept].abs()
    going = lowest(remaining, round(fraction * remaining.numel()))
    mask = kept.clone()
    mask[kept] = ~going
    return mask
