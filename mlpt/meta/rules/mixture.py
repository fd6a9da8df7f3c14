"""What rules of the mixture share: the part holds the probability of each arm that trains."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.policy import MIXTURE, Part
from mlpt.meta.rules.base import Rule, RuleConfig, entropy_of


class Guarded(RuleConfig):
    """Guard rails of a rule that looks at losses; one that looks ahead starts at `meta.lookahead.start`."""

    floor: float | None = Field(default=0.0, ge=0, lt=1, description="least probability of an arm")
    start: int = Field(default=0, ge=0, description="step before which the mixture stays as it began")


class Smoothed(Guarded):
    """Guard rails of a rule that does not smooth by itself."""

    smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the old mixture that an update keeps")


class MixtureRule(Rule):
    """A rule of the part `mixture`, whose values are {arm: probability}; it begins uniform.

    usual_floor  least probability of an arm where the settings say null, unless half an equal share is less.
    """

    part: ClassVar[str] = MIXTURE
    usual_floor: ClassVar[float] = 0.0

    def __init__(self, config: Any, arms: Sequence[str]):
        super().__init__(config, arms)
        self.floor = self.floor_of(config, len(arms))
        # A floor that does not fit is refused now.
        with_floor(dict.fromkeys(arms, 1 / len(arms)), self.floor)

    @classmethod
    def floor_of(cls, config: Any, arms: int) -> float:
        """The least probability of each of so many arms under these settings."""
        floor: float | None = getattr(config, "floor", None)
        return min(cls.usual_floor, 0.5 / arms) if floor is None else floor

    def begins(self, step: int) -> bool:
        return not isinstance(self.config, Guarded) or step >= self.config.start

    def first(self) -> Part:
        return Part({arm: 1 / len(self.arms) for arm in self.arms})

    def guarded(self, part: Part, probabilities: Sequence[float], context: MetaContext, smoothing: float = 0.0) -> Part:
        """The part after the old one with these probabilities, lifted to the floor and smoothed."""
        wanted = with_floor(dict(zip(self.arms, probabilities, strict=True)), self.floor)
        smoothed = [smoothing * part.values[arm] + (1 - smoothing) * wanted[arm] for arm in self.arms]
        return self.becomes(smoothed, context)

    def becomes(self, probabilities: Sequence[float], context: MetaContext) -> Part:
        """The part with these probabilities of the arms, in order, whose entropy in nats it reports."""
        context.report["entropy"] = entropy_of(probabilities)
        return Part(dict(zip(self.arms, probabilities, strict=True)))


def with_floor(mixture: Mapping[str, float], floor: float) -> dict[str, float]:
    """floor + (1 - n floor) p: every probability at least `floor`, the sum still 1.

    Raises `UserError` where n arms cannot all have it, or could have nothing else.
    """
    rest = 1 - len(mixture) * floor
    if rest <= 0:
        raise UserError(
            f"meta.rules.mixture.floor={floor} is too much for {len(mixture)} arms: set less than an equal share, such "
            f"as {0.5 / len(mixture):.2g}"
        )
    return {name: floor + rest * probability for name, probability in mixture.items()}
