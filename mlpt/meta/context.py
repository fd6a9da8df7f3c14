"""What a rule may look at during one update: the model at the snapshot, meta-train and meta-dev batches, a report."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mlpt.data.batch import Arm, Batch, Rows, Source
from mlpt.errors import UserError
from mlpt.meta.policy import Planned
from mlpt.meta.snapshot import MadeStep
from mlpt.objectives.base import Inputs
from mlpt.randomness import numpy_generator, torch_generator, training_noise


@dataclass(frozen=True)
class MetaContext:
    """One update's view. All texts and all noise follow from (seed, purpose, step): nothing is drawn from a stream.

    model       the learner's own copy, in eval mode, at the snapshot's weights when a rule needs them.
    optimizer   its AdamW, with the snapshot's moments when a rule needs them, and the rate of the step to come.
    arms        every arm by name, those that only a target names too.
    trained     the names of those that train, in order.
    target      weight of each arm in the meta-dev loss; sums to 1.
    sources     rows by the name of their source; rules see the train and dev splits.
    batch_size  rows in a training batch.
    step        the snapshot's step.
    progress    share of the run's steps that are done when the answer is adopted, 0 to 1.
    report      figures for the log, filled by the rules.
    made        the step that training made last, where a rule follows it and it was made.
    replica     whose rows of every batch these are, from 0, of `replicas` (`mlpt.meta.replicas`).
    """

    model: Any
    optimizer: torch.optim.AdamW
    arms: Mapping[str, Arm]
    trained: list[str]
    target: Mapping[str, float]
    sources: Mapping[str, Source]
    seed: int
    batch_size: int
    step: int
    progress: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    made: MadeStep | None = None
    replica: int = 0
    replicas: int = 1

    def of_replica(self, replica: int, replicas: int) -> "MetaContext":
        """The view of one replica of the look-ahead, with a report of its own: batches are its part of one draw."""
        return replace(self, replica=replica, replicas=replicas, report={})

    def coming_batch(self, planned: Planned) -> tuple[Batch, torch.Generator]:
        """The rows of a micro-batch of the step to come, and the noise from which a worker corrupts them."""
        batch = self.sources[self.arms[planned.arm].source].train.batch(planned.rows).for_arm(planned.arm)
        return batch, training_noise(self.seed, planned.arm, self.step, planned.slot)

    def train_inputs(self, arm: str, size: int, index: int) -> Inputs:
        """Batch `index` of `size` meta-train rows of an arm, corrupted by its objective."""
        return self._corrupted(arm, *self.train_batch(arm, size, index))

    def train_batch(self, arm: str, size: int, index: int) -> tuple[Batch, torch.Generator]:
        """The rows and the noise of `train_inputs`."""
        rows = self.sources[self.arms[arm].source].train
        return self._batch(rows, f"meta-train/{arm}", arm, size, self.step, self.step, index)

    def dev_inputs(self, arm: str, size: int, index: int, texts: int, noise: int) -> Inputs:
        """Batch `index` of `size` meta-dev rows; the steps `texts` and `noise` address what is drawn."""
        rows = self.sources[self.arms[arm].source].dev
        return self._corrupted(arm, *self._batch(rows, f"meta-dev/{arm}", arm, size, texts, noise, index))

    @torch.no_grad()
    def dev_losses(
        self, arms: Iterable[str], batches: int, size: int | None, texts: int, noise: int
    ) -> dict[str, float]:
        """Mean held-out loss in nats of each of `arms`.

        batches  of `size` rows each (default: a training batch).
        Raises `UserError` where one is not finite.
        """
        size = self.batch_size if size is None else size
        losses = {}
        for arm in arms:
            objective = self.arms[arm].objective
            inputs = (self.dev_inputs(arm, size, index, texts, noise) for index in range(batches))
            losses[arm] = sum(float(self.model(objective, one)) for one in inputs) / batches
        check_finite(losses, "held-out", self.step)
        return losses

    def _batch(
        self, rows: Rows, purpose: str, arm: str, size: int, texts: int, noise: int, index: int
    ) -> tuple[Batch, torch.Generator]:
        drawn = numpy_generator(self.seed, f"{purpose}/texts", texts, index)
        # A data set smaller than the batch gives some of its rows twice.
        whole = size * self.replicas
        chosen = drawn.choice(len(rows), whole, replace=len(rows) < whole)
        own = chosen[self.replica * size : (self.replica + 1) * size]
        noises = f"{purpose}/noise" + (f"/{self.replica}" if self.replica else "")
        return rows.batch(own).for_arm(arm), torch_generator(self.seed, noises, noise, index)

    def _corrupted(self, arm: str, batch: Batch, generator: torch.Generator) -> Inputs:
        inputs: Inputs = self.model.objectives[self.arms[arm].objective].corrupt(batch, generator)
        return inputs.to(next(self.model.parameters()).device)


def check_finite(losses: Mapping[str, float], kind: str, step: int) -> None:
    """Raise `UserError` where a loss by which a rule would learn is not finite: the rule would never forget it."""
    for arm, loss in losses.items():
        if not math.isfinite(loss):
            raise diverged(f"the {kind} loss of '{arm}'", step)


def diverged(what: str, step: int) -> UserError:
    """The error of something to learn from that is not finite."""
    return UserError(f"{what} at step {step} is not finite: training has diverged; lower the learning rate")


def each_share(rows: int, arms: int, replicas: int = 1) -> int:
    """Rows for each of `arms` on each of `replicas`; at least two, which is what contrastive objectives need."""
    return max(2, rows // (arms * replicas))
