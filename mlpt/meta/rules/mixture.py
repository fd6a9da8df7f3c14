"""What rules of the mixture share: the part holds the probability of each arm that trains."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.policy import MIXTURE, Part
from mlpt.meta.rules.base import Rule, entropy_of


class MixtureRule(Rule):
    """A rule of the part `mixture`, whose values are {arm: probability}; it begins uniform."""

    part: ClassVar[str] = MIXTURE

    def first(self) -> Part:
        return Part({arm: 1 / len(self.arms) for arm in self.arms})

    def becomes(self, probabilities: Sequence[float], context: MetaContext) -> Part:
        """The part with these probabilities of the arms, in order, whose entropy in nats it reports."""
        context.report["entropy"] = entropy_of(probabilities)
        return Part(dict(zip(self.arms, probabilities, strict=True)))


def with_floor(mixture: Mapping[str, float], floor: float) -> dict[str, float]:
    """floor + (1 - n floor) p: every probability at least `floor`, the sum still 1.

    Raises `UserError` when n arms cannot all have it.
    """
    rest = 1 - len(mixture) * floor
    if rest < 0:
        raise UserError(
            f"meta.rules.mixture.floor={floor} is too much for {len(mixture)} arms: at most {1 / len(mixture):g}"
        )
    return {name: floor + rest * probability for name, probability in mixture.items()}
