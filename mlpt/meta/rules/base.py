"""What a rule is: it owns one part of the policy and turns evidence about training into the next one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.engines.base import Outer
from mlpt.meta.policy import Evidence, Part
from mlpt.settings import Settings
from mlpt.storage.state import State


class RuleConfig(Settings):
    """Base of every rule's `Config`, which gives `rule` its own name as the default.

    rule  name of the rule, or the path of one's own, package.module:Class.
    """

    rule: str


class Rule:
    """One rule. Subclasses set `name`, `part` and `Config` (with the field `rule`) and define `update`.

    part           the part of the policy that the rule owns.
    learns         False: the part never changes, so that no learner need run for it.
    needs_weights  `update` forwards the model: the learner loads the snapshot first.
    needs_moments  `update` looks ahead: snapshots must carry AdamW's moments.
    needs_parts    of a look-ahead's gradients it asks for the parts by parameter: the engine must tell them.
    needs_coming   `update` reads `evidence.coming`, the micro-batches of the step to come.
    needs_rows     `update` reads `evidence.rows`, the training rows to come.
    needs_progress `update` reads `context.progress`: only pretraining, whose length is known, can have the rule.
    learns_from_draws  what it learns lies in how far chance took the draws from their probabilities; a run whose steps
                       train every arm by its share (train.draw=weighted) has nothing for it.

    A rule changes its own state at the end of `update` only: an update that fails leaves it as it was. One that
    returns the very part it was given has changed none of its tensors. Tensors of a part and of the state are replaced,
    never written to.
    """

    name: ClassVar[str]
    part: ClassVar[str]
    learns: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = False
    needs_moments: ClassVar[bool] = False
    needs_parts: ClassVar[bool] = False
    needs_coming: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False
    needs_progress: ClassVar[bool] = False
    learns_from_draws: ClassVar[bool] = False

    class Config(RuleConfig):
        """No settings."""

    def __init__(self, config: Any, arms: Sequence[str]):
        """`arms` are the names of those that train."""
        self.config = config
        self.arms = list(arms)

    @classmethod
    def refuses(cls, settings: Any, config: Any) -> str | None:
        """Why a run of this configuration (`mlpt.config.RunConfig`) can't have the rule with these settings, in one
        line; None: it can."""
        return None

    def check(self, model: Any) -> None:
        """Raise `UserError` for a model that the rule can do nothing with. Asked before training."""

    def first(self) -> Part:
        """The part before the first update."""
        return Part()

    def begins(self, step: int) -> bool:
        """Whether updates at this step reach the rule; before that its part stays. (Look-aheads have a start of their
        own, `meta.lookahead.start`.)"""
        return True

    def apply(self, part: Part, model: Any) -> None:
        """Make `model` obey `part`, in place: on every worker when it is adopted, on the learner before each update."""

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        """The part after this evidence. Figures for the log go to `context.report`."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def state(self) -> State:
        """All that the next update depends on, from which `load_state` goes on bit for bit."""
        return State()

    def load_state(self, state: State) -> None:
        """Take back what `state` gave."""


class Share:
    """What a rule that differentiates gives to the one look-ahead of an update.

    outer         leaves to differentiate by. A name that is a parameter of the model takes that parameter's place.
    by_parameter  asks for the parts of its gradients by parameter (`mlpt.meta.engines.base.by_parameter_of`).
    """

    def __init__(self, outer: Mapping[str, Tensor], by_parameter: bool = False):
        self.outer = dict(outer)
        self.by_parameter = by_parameter

    def weights(self, outer: Outer) -> Mapping[str, Tensor] | None:
        """The arms' weights in an inner loss as functions of `outer`; None: those of the policy."""
        return None

    def inputs(self, arm: str, inputs: Any, outer: Outer) -> Any:
        """An arm's inputs of an inner step as functions of `outer`; by default as they come."""
        return inputs


class LookaheadRule(Rule):
    """A rule that moves its part along a hypergradient: it defines `share` and `descend` instead of `update`."""

    needs_weights = True
    needs_moments = True

    def share(self, part: Part, context: MetaContext) -> Share:
        """The rule's leaves and how the inner losses depend on them, at the snapshot."""
        raise NotImplementedError(f"{type(self).__name__}.share")

    def descend(self, part: Part, gradients: Mapping[str, Tensor], context: MetaContext) -> Part:
        """The part after one outer step. `gradients` are of the meta-dev loss by the rule's own leaves, and finite."""
        raise NotImplementedError(f"{type(self).__name__}.descend")

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        """Outside a look-ahead (before its start) the part stays."""
        return part


def check_arms(names: Iterable[str], arms: Sequence[str], setting: str) -> None:
    """Raise `UserError` when `setting` names an arm that the run does not train."""
    for name in names:
        if name not in arms:
            raise UserError(f"{setting} names '{name}', which this run does not train: {', '.join(arms)}")


def check_every_arm(names: Iterable[str], arms: Sequence[str], setting: str, what: str) -> None:
    """Raise `UserError` where `setting`, which says `what` of arms by name, leaves one out or names another."""
    named = list(names)
    check_arms(named, arms, setting)
    missing = [arm for arm in arms if arm not in named]
    if missing:
        raise UserError(f"{setting} has no {what} of '{missing[0]}': give one for every arm")


def softmax(scores: Sequence[float]) -> list[float]:
    """exp(s) / sum exp(s), in float64."""
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy_of(probabilities: Iterable[float]) -> float:
    """Entropy in nats."""
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def entropy_gradient(probabilities: Sequence[float]) -> list[float]:
    """dH/ds of p = softmax(s): -p (log p + H)."""
    entropy = entropy_of(probabilities)
    # A probability that underflowed has p log p = 0, as in the limit.
    return [-p * ((math.log(p) if p > 0 else 0.0) + entropy) for p in probabilities]
