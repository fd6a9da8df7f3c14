"""What a pretraining run trains on: each micro-batch belongs to an arm that the policy's mixture drew.

A source hands out its rows in a seeded order of its own, epoch after epoch; its position counts the rows that were
drawn from it, by whichever arm, so that it is the same at any world size and a resumed run need not replay it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlpt.data.batch import Arm, Split
from mlpt.data.sources import ALL, Sources
from mlpt.errors import UserError
from mlpt.meta.policy import Planned
from mlpt.models.encoder import Encoder
from mlpt.objectives.base import Inputs
from mlpt.objectives.capacity import with_capacity
from mlpt.randomness import training_noise
from mlpt.storage.state import State
from mlpt.training.config import TrainConfig
from mlpt.training.draw import draw_arms, sampled
from mlpt.training.evaluate import held_out_losses
from mlpt.training.group import Group


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of a global step, whichever rank does it.

    slot    its number in the step; rows, noise and dropout are addressed by (seed, step, slot).
    arm     what it trains.
    rows    (n,) int64, row numbers in the arm's source.
    weight  what its loss is multiplied by.
    share   how much of a step it is; sums to 1 over a step.
    """

    slot: int
    arm: Arm
    rows: NDArray[np.int64]
    weight: float
    share: float


class ArmRows:
    """Arms over sources of text: which rows are trained by which objective at each step, and how they are measured.

    arms    every arm by name; `trained` names those that the mixture may draw, the others are only measured.
    target  weights, summing to 1, of the held-out losses that say how good a step is.
    max_repeats  how often the text of a domain may be gone through; None: any number of times.
    sampling  probabilities, above 0, by which arms of `trained` are drawn; None: by the mixture.

    Raises `UserError` for fewer micro-batches than ranks, too little text for a batch, or for the run with its cap.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Encoder,
        sources: Sources,
        arms: Mapping[str, Arm],
        trained: Sequence[str],
        target: Mapping[str, float],
        group: Group,
        seed: int,
        max_repeats: float | None = None,
        sampling: Mapping[str, float] | None = None,
    ):
        self.config, self.model, self.group, self.seed = config, model, group, seed
        self.arms, self.trained, self.sources, self.target = dict(arms), list(trained), sources, dict(target)
        self.micro_batches = config.micro_batches
        if self.micro_batches < group.world:
            raise UserError(
                f"{group.world} workers need as many micro-batches a step, and there are {self.micro_batches}; "
                "lower train.micro_batch_size or raise train.batch_size"
            )
        self.block_size = sources.block_size
        self._walks = {name: sources.walk(name, config.batch_size, seed) for name in self._sources_of(trained)}
        self._taken = dict.fromkeys(self._walks, 0)  # rows that each source has given
        self.max_repeats, self.sampling = max_repeats, sampling
        if max_repeats is not None:
            self._check_enough(max_repeats)

    def _sources_of(self, names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(self.arms[name].source for name in names))

    def _check_enough(self, most: float) -> None:
        """Raise `UserError` where the run would have nothing left to draw."""
        wanted = self.config.total_steps(self.block_size) * self.config.batch_size
        shares = self.sources.mix or {} if list(self._walks) == [ALL] else {}
        for name, share in shares.items():
            repeats = wanted * share / max(1, len(self.sources[name].train))
            if share and repeats > most:
                raise UserError(
                    f"data.mix would go through '{name}' {repeats:.1f} times, and data.max_repeats is {most:g}: give "
                    "it a smaller share, more text, or train for fewer steps"
                )
        there = sum(int(self._most(name, most)) // self.config.batch_size for name in self._walks)
        left = there * self.config.batch_size
        if left < wanted:
            raise UserError(
                f"the run draws {wanted:,} blocks, and data.max_repeats={most:g} leaves {left:,}: raise it, give more "
                "text, or train for fewer steps"
            )

    def exhausted(self) -> set[str]:
        """The arms whose text has been gone through as often as it may be."""
        if self.max_repeats is None or len(self._walks) == 1:
            return set()
        spent = {
            name
            for name in self._walks
            if self._taken[name] + self.config.batch_size > self._most(name, self.max_repeats)
        }
        return {name for name in self.trained if self.arms[name].source in spent}

    def _most(self, source: str, repeats: float) -> float:
        """Rows that a source may give; a fixed mix no more than its first domain to be gone through that often."""
        if source != ALL or self.sources.mix is None:
            return repeats * self._rows(source)
        return min(repeats * self._rows(name) / share for name, share in self.sources.mix.items() if share)

    def _rows(self, source: str) -> int:
        return len(self.sources[source].train)

    def plan(self, step: int, mixture: Mapping[str, float]) -> list[MicroBatch]:
        """All micro-batches of global step `step`, the same on every rank. Asked for once a step, in order."""
        by = sampled(mixture, self.sampling)
        drawn = draw_arms(self.config.draw, by, self.seed, step, self.micro_batches)
        rows = self._take([self._sources_of([name for name, _ in slot]) for slot in drawn])
        return [
            MicroBatch(
                slot,
                self.arms[name],
                rows[slot][self.arms[name].source],
                weight * (mixture[name] / by[name]),
                weight / self.micro_batches,
            )
            for slot, arms in enumerate(drawn)
            for name, weight in arms
        ]

    def coming(self, step: int, mixture: Mapping[str, float]) -> list[Planned]:
        """What `plan` will say of the step to come, for the meta-learner; nothing is taken."""
        size, planned = self.config.batch_size, self._foreseen(step, mixture)
        return [Planned(one.arm.name, one.slot, one.rows, one.weight * len(one.rows) / size) for one in planned]

    def first_of(self, step: int, mixture: Mapping[str, float]) -> tuple[int, MicroBatch]:
        """The step to come and this rank's first micro-batch in it, should that be its mixture; nothing is taken."""
        return step, next(one for one in self._foreseen(step, mixture) if self.group.makes(one.slot))

    def _foreseen(self, step: int, mixture: Mapping[str, float]) -> list[MicroBatch]:
        taken = dict(self._taken)
        planned = self.plan(step, mixture)
        self._taken = taken
        return planned

    def rows(self, step: int, first: int, end: int, mixture: Mapping[str, float]) -> dict[str, NDArray[np.int64]]:
        """By source, (n,) int64, the rows that `plan` will give to the steps from `first` to before `end` (and the
        run's end), where `mixture` stays as it is from the coming step `step` on; nothing is taken."""
        taken = dict(self._taken)
        found: dict[str, list[NDArray[np.int64]]] = {}
        for one in range(step, min(end, self.config.total_steps(self.block_size))):
            for micro_batch in self.plan(one, mixture):
                if one >= first:
                    found.setdefault(micro_batch.arm.source, []).append(micro_batch.rows)
        self._taken = taken
        return {source: np.unique(np.concatenate(rows)) for source, rows in found.items()}

    def _take(self, wanted: Sequence[Sequence[str]]) -> list[dict[str, NDArray[np.int64]]]:
        """For each slot, the next rows of every source that it wants; a source's rows of a step are dealt in turn."""
        found: list[dict[str, NDArray[np.int64]]] = [{} for _ in wanted]
        for name, walk in self._walks.items():
            slots = [slot for slot, sources in enumerate(wanted) if name in sources]
            if not slots:
                continue
            count = sum(len(range(slot, self.config.batch_size, self.micro_batches)) for slot in slots)
            rows = walk.take(self._taken[name], count)
            self._taken[name] += count
            for turn, slot in enumerate(slots):
                found[slot][name] = rows[turn :: len(slots)]
        return found

    def inputs(self, step: int, micro_batch: MicroBatch) -> Inputs:
        """The inputs of one micro-batch, on the CPU; pure."""
        arm = micro_batch.arm
        batch = self.sources[arm.source].train.batch(micro_batch.rows).for_arm(arm.name)
        noise = training_noise(self.seed, arm.name, step, micro_batch.slot)
        objective = self.model.objectives[arm.objective]
        inputs = objective.corrupt(batch, noise)
        if batch.documents is not None and inputs.documents is None:
            raise UserError(
                f"objective '{arm.objective}' does not say which document its tokens belong to, which "
                "model.attend_within=document asks for: give its Inputs documents=batch.documents, or leave that out"
            )
        capacity = objective.capacity(batch.tokens.numel()) if self.config.keeps_shapes else None
        return inputs if capacity is None else with_capacity(inputs, capacity)

    def tokens(self, steps: int) -> int:
        """Tokens that `steps` steps train on."""
        return steps * self.config.batch_size * self.block_size

    def losses(self, split: Split) -> dict[str, float]:
        """Held-out loss of every arm, in nats; the same on every rank."""
        batches, size = self.config.evaluate_batches, self.config.batch_size
        return held_out_losses(self.model, self.arms, self.sources, split, batches, size, self.seed, self.group)

    def target_loss(self, losses: Mapping[str, float]) -> float:
        """The weighted mean, in nats, of the target's losses."""
        return sum(weight * losses[name] for name, weight in self.target.items())

    def epochs(self) -> dict[str, float]:
        """How many times the rows of each source that trains, and of each domain of a fixed mix, were gone through."""
        mix = self.sources.mix
        found: dict[str, float] = {}
        for source, taken in self._taken.items():
            if source == ALL and mix is not None:
                found |= {name: taken * mix.get(name, 0.0) / self._rows(name) for name in self.sources.domains}
            else:
                found[source] = taken / self._rows(source)
        return found

    def state(self) -> State:
        """What a checkpoint must hold."""
        return State({"taken": dict(self._taken)})

    def load_state(self, state: State) -> None:
        """The inverse of `state`."""
        self._taken = {name: int(rows) for name, rows in state.values["taken"].items()}
