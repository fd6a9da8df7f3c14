"""Everything the workers obey is a `Policy`: a version and named parts; and what is said between loop and learner."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mlpt.storage.state import State

Part = State  # JSON values plus tensors; the rule that owns the part gives both their meaning

MIXTURE = "mixture"  # the part that the draw of arms reads: values {arm: probability}


@dataclass(frozen=True)
class Policy:
    """What training does next. `version` counts updates, from 0; one rule owns each of `parts`."""

    version: int
    parts: Mapping[str, Part] = field(default_factory=dict)

    def values(self, part: str) -> Mapping[str, Any]:
        """The JSON values of a part; empty where there is no such part."""
        return self.parts[part].values if part in self.parts else {}

    def tensors(self, part: str) -> Mapping[str, Tensor]:
        """The tensors of a part; empty where there is no such part."""
        return self.parts[part].tensors if part in self.parts else {}

    def after(self, answer: "Answer") -> "Policy":
        """The policy once `answer` is adopted: parts that it does not name stay."""
        return Policy(answer.version, {**self.parts, **answer.parts})

    def to_json(self) -> str:
        """Version and parts without tensors, one line; any other trainer can read it."""
        return json.dumps({"version": self.version, **{name: dict(part.values) for name, part in self.parts.items()}})


@dataclass(frozen=True)
class Planned:
    """A micro-batch of the step to come: its arm, its slot in the step, its rows (n,) int64 among the training rows of
    the arm's source, and what its mean loss is multiplied by in the step's loss."""

    arm: str
    slot: int
    rows: NDArray[np.int64]
    weight: float


@dataclass(frozen=True)
class Evidence:
    """What the workers saw since the last update, by arm; on-policy, because it says what was in force.

    draws     how many steps trained the arm, over all ranks; fractions where a step was shared out (stratified) or
              weighted, so that they always sum to the steps since the last update.
    losses    mean training loss in nats of each arm drawn since the last update.
    expected  the probability of each arm that was in force at each of those steps, summed: how many draws were to be
              expected. With a lag some steps, or all, were drawn from the policy before, so a rule that centres or
              weights the draws must do it by these, never by its newest mixture.
    coming    the micro-batches of the snapshot's own step, which training takes next (with lag 0: as the policy before
              the answer draws them); only where a rule asks for them.
    rows      by source, (n,) int64: the training rows that are taken while the answer is in force, as the policy
              before it draws them; only where a rule asks for them.

    Raises `ValueError` when draws and expected draws do not sum to the same number of steps.
    """

    draws: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    coming: Sequence[Planned] = ()
    rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = sum(self.draws.values())
        if abs(sum(self.expected.values()) - steps) > 1e-6 * max(1.0, steps):
            raise ValueError(f"evidence of {steps:g} steps carries the probabilities of others: {dict(self.expected)}")


@dataclass(frozen=True)
class Answer:
    """What a meta-learner returns for one update.

    version  of the policy that it makes.
    parts    the parts that changed, by name.
    state    the learner's state after the update, by part; its tensors are those of the rules whose part changed.
    report   figures for the log: plain JSON values.
    """

    version: int
    parts: Mapping[str, Part]
    state: State
    report: Mapping[str, Any] = field(default_factory=dict)
