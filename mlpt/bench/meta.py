"""What a look-ahead costs: one update of rule `hypergradient` in training steps of the same batch size, and its memory.

BERT 4 x 256, vocabulary 8,192, four objectives, 32 x 128 tokens; an inner step and the meta-dev loss take as many texts
as a training step; with engine `alignment` there is no inner step, and the meta-dev loss takes half as many. Loading
the snapshot and corrupting the texts are part of the update. Peaks are of a process that trains with full batches and
looks ahead now and then, the learner's own model, moments and snapshot included.
"""

import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpt.arms import arms_of
from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.data.batch import Batch, Source
from mlpt.data.sources import ALL
from mlpt.data.vocabulary import Vocabulary
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.snapshot import MadeStep, Snapshot, take_snapshot
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import Encoder, build_encoder
from mlpt.objectives import make_objectives
from mlpt.randomness import torch_generator
from mlpt.settings import load_settings
from mlpt.training.group import Group
from mlpt.training.made import GradientRecorder
from mlpt.training.nonfinite import gradient_norm
from mlpt.training.optimizer import OptimizerConfig, make_optimizer

VOCABULARY = Vocabulary(size=8192, pad=0, unk=1, cls=2, sep=3, mask=4)
OBJECTIVES = ("mlm", "atd", "dtd", "cse")
BATCH, LENGTH = 32, 128
SHORT = tuple((name, 1) for name in ("higher", "one_step", "finite_difference", "forward_over_reverse", "alignment"))
LONG = (("higher", 4), ("finite_difference", 4), ("forward_over_reverse", 4))  # engine, inner steps


class RandomBlocks:
    """Blocks of random tokens, in memory."""

    def __len__(self) -> int:
        return 4 * BATCH

    def batch(self, rows: np.ndarray) -> Batch:
        """These rows."""
        generator = torch_generator(0, "tokens")
        every = torch.randint(5, VOCABULARY.size, (len(self), LENGTH), generator=generator)
        every[:, 0], every[:, -1] = VOCABULARY.cls, VOCABULARY.sep
        return Batch(every[torch.from_numpy(rows)], rows)


def run() -> list[Row]:
    """Each engine's update in training steps, timed in turn with real steps; then the peak memory of a process that
    trains and makes such updates, with each engine alone."""
    training = Training(RandomBlocks())
    step_seconds, rows = _compare(training, SHORT, rounds=3, warmup=1)
    _, longer = _compare(training, LONG, rounds=1, warmup=0)
    step = _row("training step, float32", step_seconds, "s", peak_of(training.one_step_each))
    return [step, *rows, *longer]


class Training:
    """A model in training with each of the objectives in turn."""

    def __init__(self, blocks: RandomBlocks):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.blocks = blocks
        self.model = make_model().to(self.device)
        self.optimizer = make_optimizer(self.model, load_settings(OptimizerConfig, {}))

    def one_step_each(self) -> None:
        """One step with each objective: corrupt, forward, backward, clip, AdamW."""
        for name in OBJECTIVES:
            batch = self.blocks.batch(np.arange(BATCH))
            inputs = self.model.objectives[name].corrupt(batch, torch_generator(0, name)).to(self.device)
            self.optimizer.zero_grad()
            self.model(name, inputs).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()

    def stratified_step(self) -> None:
        """One step with all of the objectives, a quarter of the batch each."""
        self._stratified(GradientRecorder(None, Group(device=self.device)))

    def recorded_step(self) -> MadeStep | None:
        """The same, of which each objective's gradient is kept."""
        return self._stratified(GradientRecorder(1, Group(device=self.device)))

    def _stratified(self, recorder: GradientRecorder) -> MadeStep | None:
        self.optimizer.zero_grad()
        share = BATCH // len(OBJECTIVES)
        with recorder.step(0, self.model):
            for place, name in enumerate(OBJECTIVES):
                batch = self.blocks.batch(np.arange(place * share, (place + 1) * share))
                inputs = self.model.objectives[name].corrupt(batch, torch_generator(0, name)).to(self.device)
                with recorder.passes(name, share / BATCH, 1.0):
                    (self.model(name, inputs) * share / BATCH).backward()
        norm = gradient_norm(self.model.parameters(), 1.0)
        self.optimizer.step()
        recorder.close(0, self.model, True, norm, 1.0)
        return recorder.kept


def lookahead(training: Training, engine: str, steps: int) -> Callable[[], object]:
    """A function that runs one update of the rule on a snapshot of `training` after a few steps."""
    learner = make_learner(training, engine, steps)
    training.one_step_each()
    snapshot = snapshot_of(training, engine)
    return lambda: learner.update(snapshot, Evidence())


def training_and_lookahead(training: Training, engine: str, steps: int) -> Callable[[], object]:
    """A function that makes a few steps of training, and then a snapshot and an update of the rule as a run does."""
    learner = make_learner(training, engine, steps)

    def interval() -> None:
        training.one_step_each()
        learner.update(snapshot_of(training, engine), Evidence())

    return interval


def make_learner(training: Training, engine: str, steps: int) -> MetaLearner:
    """A meta-learner with a model of its own, on the device of `training`."""
    model = make_model().to(training.device)
    look: dict[str, Any] = {"engine": engine, "inner_steps": steps, "start": 0}
    if engine == "alignment":
        look["dev_batch_size"] = BATCH // 2
    config = load_settings(MetaConfig, {"rules": {"mixture": "hypergradient"}, "lookahead": look})
    optimizer = make_optimizer(model, load_settings(OptimizerConfig, {}))
    sources = {ALL: Source(training.blocks, training.blocks, training.blocks)}
    return MetaLearner(config, model, optimizer, sources, arms_of(OBJECTIVES, [], None, texts=False), 0, BATCH)


def snapshot_of(training: Training, engine: str) -> Snapshot:
    """What the learner is sent; for engine `alignment` after a step whose gradients are kept."""
    made = training.recorded_step() if engine == "alignment" else None
    return take_snapshot(training.model, training.optimizer, len(OBJECTIVES), 1e-3, moments=True, made=made)


def make_model() -> Encoder:
    """The benchmark's encoder on the CPU."""
    objectives = make_objectives({name: {} for name in OBJECTIVES}, VOCABULARY)
    config = load_settings(ModelConfig, {"architecture": "bert", "hidden_size": 256, "layers": 4, "heads": 4})
    return build_encoder(config, VOCABULARY, objectives, LENGTH, seed=0)


def peak_of(function: Callable[[], object]) -> int:
    """Peak memory during one call, in bytes: of the device, else resident memory of this process.

    Linux can reset its high-water mark; elsewhere this is the peak of the process so far.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated()
    marks = Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would count as used
        marks.write_text("5")
    except (OSError, AttributeError):  # not Linux, or not glibc
        function()
        return peak_bytes()
    function()
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _compare(
    training: Training, lookaheads: Iterable[tuple[str, int]], rounds: int, warmup: int
) -> tuple[float, list[Row]]:
    """Seconds of a training step, and a row for each look-ahead in units of it, timed in turn."""
    updates = {pair: lookahead(training, *pair) for pair in lookaheads}
    taken = seconds_interleaved(training.one_step_each, *updates.values(), rounds=rounds, warmup=warmup)
    step_seconds, *seconds = (taken[0] / len(OBJECTIVES), *taken[1:])
    named = list(updates)
    updates.clear()  # their learners and snapshots would count in each other's peaks
    rows = []
    for (engine, steps), one in zip(named, seconds, strict=True):
        both = training_and_lookahead(training, engine, steps)
        both()  # moments and buffers are there from now on
        name = f"hypergradient, {engine}, K={steps}"
        rows.append(_row(name, one / step_seconds, "training steps", peak_of(both)))
    return step_seconds, rows


def _row(name: str, value: float, unit: str, peak: int) -> Row:
    return Row("meta", name, value, None, None, unit, peak, machine())
