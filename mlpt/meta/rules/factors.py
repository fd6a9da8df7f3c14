"""A mixture over arms as a product: `factor: [objective, domain]` gives a logit to each objective and to each domain,
and an arm's logit is the sum of its own two. Ten domains with three objectives are 13 numbers to learn, not 30.

An arm without a domain (a labelled task, an objective on all text) has the logit of its objective alone.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

from mlpt.errors import UserError

Factor = Literal["objective", "domain"]


def _different(factors: list[Factor]) -> list[Factor]:
    if len(set(factors)) < len(factors):
        raise ValueError("factor names a factor twice; there are objective and domain")
    return factors


FactorList = Annotated[list[Factor], AfterValidator(_different)]


def level_of(arm: str, factor: Factor) -> str | None:
    """The arm's objective or domain by its name (`mlm@legal`); None where it has no domain."""
    objective, _, domain = arm.partition("@")
    return objective if factor == "objective" else domain or None


class Factors:
    """Which logits make up an arm's.

    levels  the logits by factor: names of objectives, names of domains; without factors one for each arm.
    names   all levels, one after another.

    Raises `UserError` for a factor that no arm has.
    """

    def __init__(self, arms: Sequence[str], factors: Sequence[Factor]):
        parts: list[list[str | None]] = [[level_of(arm, factor) for arm in arms] for factor in factors] or [[*arms]]
        self.levels = [list(dict.fromkeys(level for level in part if level is not None)) for part in parts]
        if not all(self.levels):
            raise UserError(
                f"meta.rules.mixture.factor names domain, and the arms have no domains: {', '.join(arms)}; set "
                "data.mix=learned, or leave factor out"
            )
        columns = [(at, level) for at, levels in enumerate(self.levels) for level in levels]
        self.names = [level for _, level in columns]
        self._incidence = torch.tensor(
            [[float(parts[at][arm] == level) for at, level in columns] for arm in range(len(arms))],
            dtype=torch.float64,
        )

    @property
    def size(self) -> int:
        """How many logits there are."""
        return len(self.names)

    def of_arms(self, logits: Tensor) -> Tensor:
        """(size,) logits -> (arms,), of their dtype and device; differentiable."""
        return self._incidence.to(logits) @ logits

    def summed(self, gradients: Sequence[float]) -> list[float]:
        """A gradient by the arms' logits -> by the logits here."""
        found: list[float] = (self._incidence.T @ torch.tensor(gradients, dtype=torch.float64)).tolist()
        return found

    def averaged(self, values: Sequence[float], probabilities: Sequence[float]) -> list[float]:
        """Values of arms -> of levels: the mean over a level's arms, each with its share of the level's probability."""
        shares = self._incidence * torch.tensor(probabilities, dtype=torch.float64).clamp(min=1e-12)[:, None]
        means: list[float] = (shares.T @ torch.tensor(values, dtype=torch.float64) / shares.sum(0)).tolist()
        return means

    def in_each(self, values: Sequence[float], change: Callable[[Sequence[float]], list[float]]) -> list[float]:
        """Values of all levels with those of each factor changed together."""
        changed, start = [], 0
        for levels in self.levels:
            changed += change(values[start : start + len(levels)])
            start += len(levels)
        return changed
