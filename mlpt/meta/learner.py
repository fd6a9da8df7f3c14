"""The meta-learner: a rule, the meta-data, and a copy of the model that snapshots are loaded into. Knows no Ray.

Deterministic: texts and noise are addressed by (seed, purpose, snapshot.step), the model is in eval mode (no dropout)
and in float32 whatever the workers train in. On a CPU equal bits need an equal thread count too
(`torch.set_num_threads`), which whoever hosts the learner sets.
"""

import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mlpt.data.rows import Rows
from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Answer, Evidence, Policy, Snapshot
from mlpt.meta.rules import RULES, MixtureConfig
from mlpt.meta.rules.base import entropy_of
from mlpt.meta.rules.mask_scores import MaskScores
from mlpt.meta.rules.mometas import Mometas
from mlpt.meta.snapshot import load_snapshot
from mlpt.settings import Settings

LONGEST_DEFAULT_LAG = 20  # steps; a quick rule answers well within them


class MetaConfig(Settings):
    """interval  steps between updates (the first is launched at step 0 and takes baselines).
    lag          every rank adopts the answer at exactly this many steps after the snapshot; 0: training waits for it.
                 Default: 20, or the interval where that is shorter.
    mixture      the rule that learns the mixture, and its settings.
    masks        learn the scores of a masked model too (rule `mask_scores`); null: no.
    """

    interval: int = Field(default=100, ge=1)
    lag: int = Field(default_factory=lambda data: min(LONGEST_DEFAULT_LAG, data.get("interval", 0)), ge=0)
    mixture: MixtureConfig = Field(default_factory=lambda: Mometas.Config())
    masks: MaskScores.Config | None = None

    @model_validator(mode="after")
    def _one_answer_at_a_time(self) -> "MetaConfig":
        if self.lag > self.interval:
            raise ValueError(f"lag ({self.lag}) cannot exceed interval ({self.interval}): answers would overtake")
        return self


class MetaLearner:
    """Turns snapshots and evidence into policies.

    model       an `Encoder` of its own (bare: neither DDP nor torch.compile), float32, on the device to use.
    optimizer   an AdamW over it, with the groups and settings of the workers' own.
    train, dev  blocks of the meta-train split (the training text) and the held-out meta-dev split.
    batch_size  texts in a training batch.
    """

    def __init__(
        self,
        config: MetaConfig,
        model: Any,
        optimizer: torch.optim.AdamW,
        train: Rows,
        dev: Rows,
        seed: int,
        batch_size: int,
    ):
        if len(train) == 0 or len(dev) == 0:
            raise UserError("the meta-learner needs at least one block of training and one of meta-dev text")
        self._model, self._optimizer = model, optimizer
        self._train, self._dev = train, dev
        self._seed, self._batch_size = seed, batch_size
        self._rule = RULES[config.mixture.rule](config.mixture, list(model.objectives))
        self._masks = None if config.masks is None else MaskScores(config.masks, list(model.objectives))
        model.eval()

    @property
    def needs_weights(self) -> bool:
        """False: the rule ignores the snapshot's weights (and an update is all but free)."""
        return self._rule.needs_weights or self._masks is not None

    @property
    def needs_moments(self) -> bool:
        """True: snapshots must carry AdamW's moments."""
        return self._rule.needs_moments or self._masks is not None

    def first_policy(self) -> Policy:
        """Version 0, in force before the first answer."""
        return Policy(0, self._rule.first_mixture())

    def update(self, policy: Policy, snapshot: Snapshot, evidence: Evidence) -> Answer:
        """The next policy, one version up, with the state that belongs to it.

        `policy` is the newest one there is, `evidence` what happened since the update before. The first call finds no
        earlier losses: rules that compare take their baseline then and leave the mixture alone.
        Raises `UserError` for a snapshot of another model or without the moments that the rule needs.
        """
        start = time.perf_counter()
        if self.needs_moments and snapshot.exp_avg is None:
            raise UserError(f"rule '{self._rule.name}' looks ahead: take snapshots with moments=True")
        if self.needs_weights:
            load_snapshot(self._model, self._optimizer, snapshot)
        if self._masks is not None:
            self._masks.place(self._model)
        self._model.eval()
        context = MetaContext(
            self._model, self._optimizer, self._train, self._dev, self._seed, self._batch_size, snapshot.step
        )
        device = next(self._model.parameters()).device.type
        with torch.autocast(device, enabled=False):
            learned = self._rule.update(policy, evidence, context)
            if self._masks is not None:
                learned = self._masks.update(learned, evidence, context)
        learned = replace(learned, version=policy.version + 1)
        state, tensors = self.state()
        report = {**context.report, "entropy": entropy_of(learned.mixture.values()), "peak_bytes": _peak_bytes(device)}
        return Answer(learned, state, {**report, "seconds": time.perf_counter() - start}, tensors)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values, which survive a round trip exactly, and tensors: all that the next update depends on."""
        state = {"rule": self._rule.name, "objectives": self._rule.objectives, "mixture": self._rule.state()}
        if self._masks is None:
            return state, self._rule.tensors()
        tensors = {f"masks/{name}": tensor for name, tensor in self._masks.tensors().items()}
        return {**state, "masks": self._masks.state()}, {**self._rule.tensors(), **tensors}

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state()`. Raises `UserError` when it belongs to another rule or other objectives."""
        for key, mine in (("rule", self._rule.name), ("objectives", self._rule.objectives)):
            if state[key] != mine:
                raise UserError(
                    f"the meta-learner's state has {key} {state[key]} and this run {mine}: resume it as it was"
                )
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("masks/")}
        self._rule.load_state(state["mixture"], own)
        if self._masks is not None:
            learned = {name.removeprefix("masks/"): tensors[name] for name in tensors.keys() - own.keys()}
            self._masks.load_state(state["masks"], learned)


def _peak_bytes(device: str) -> int:
    """Peak device memory on a GPU, else peak resident memory of this process, so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
