"""Everything the workers obey is a `Policy`: an immutable, serialisable value with a version number."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Policy:
    """What training does next.

    version  counts updates, from 0.
    mixture  probability of each objective; sums to 1.
    masks    scores of masked weights by parameter name, when a rule learns them (float32 tensors, shape of the weight).
    """

    version: int
    mixture: Mapping[str, float]
    masks: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        total = sum(self.mixture.values())
        if not self.mixture or abs(total - 1) > 1e-6 or min(self.mixture.values()) < 0:
            raise ValueError(f"a mixture holds probabilities that sum to 1, not {dict(self.mixture)}")

    def to_json(self) -> str:
        """The policy without tensors, as the one-line JSON of `mixture.json`; any other trainer can read it."""
        return json.dumps({"version": self.version, "mixture": dict(self.mixture)})

    @classmethod
    def from_json(cls, text: str, masks: Mapping[str, Tensor] | None = None) -> "Policy":
        values = json.loads(text)
        return cls(values["version"], values["mixture"], masks)


@dataclass(frozen=True)
class Snapshot:
    """The trainees' state at one step, as flat buffers (one copy, zero-copy through Ray's object store).

    All that training changes is in it, so that a model that started as the trainees did, and was given a snapshot, is
    the same network.

    step              optimiser steps done.
    parameters        (n,) float32, the trainable parameters in `model.parameters()` order, flattened and joined.
    exp_avg           (n,) float32, AdamW's first moments, zeros where there are none yet; None when no rule asks.
    exp_avg_sq        (n,) float32, AdamW's second moments, likewise.
    optimizer_steps   (number of parameter tensors,) int64: AdamW's step count of each (heads that idle lag behind).
    learning_rate     the rate of the step to come.
    altered           names of the frozen parameters that step hooks may change (scores of iterative pruning, say).
    frozen            (m,) float32, their values, flattened and joined in that order.
    buffers           every buffer by its name (the thresholds of masks are such), in its own shape and dtype.
    """

    step: int
    parameters: np.ndarray
    learning_rate: float
    altered: tuple[str, ...] = ()
    frozen: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    buffers: Mapping[str, np.ndarray] = field(default_factory=dict)
    exp_avg: np.ndarray | None = None
    exp_avg_sq: np.ndarray | None = None
    optimizer_steps: np.ndarray | None = None


@dataclass(frozen=True)
class Evidence:
    """What the workers saw since the last update.

    draws     how many steps were drawn for each objective, over all ranks; fractions where a step was shared out
              (stratified) or weighted, so that they always sum to the steps since the last update.
    losses    mean training loss in nats of each objective drawn since the last update.
    expected  the probability of each objective that was in force at each of those steps, summed: how many draws were to
              be expected. With a lag some steps, or all, were drawn from the policy before, so a rule that centres or
              weights the draws must do it by these, never by its newest mixture.

    Raises `ValueError` when draws and expected draws do not sum to the same number of steps.
    """

    draws: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = sum(self.draws.values())
        if abs(sum(self.expected.values()) - steps) > 1e-6 * max(1.0, steps):
            raise ValueError(f"evidence of {steps:g} steps carries the probabilities of others: {dict(self.expected)}")


@dataclass(frozen=True)
class Answer:
    """What a meta-learner returns: the next policy, its own state after the update, and figures for the log.

    `state` and `report` hold plain JSON values; `tensors` holds those parts of the state that are tensors.
    """

    policy: Policy
    state: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
