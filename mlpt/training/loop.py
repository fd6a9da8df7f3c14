"""The one step loop: every kind of pretraining here is this loop with other objectives, parameters, rules and hooks.

A global step is cut into micro-batches that don't depend on how many ranks there are; rows, noise, dropout and draws are
addressed by (seed, step, micro-batch). So a run is the same at any world size, up to the order in which floats are added.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mlpt.data.blocks import Blocks
from mlpt.data.sampler import Sampler
from mlpt.errors import UserError
from mlpt.models.encoder import Encoder
from mlpt.randomness import address, torch_generator
from mlpt.settings import Settings
from mlpt.training.checkpoint import Checkpoint, Checkpoints
from mlpt.training.draw import Draw, draw_objectives
from mlpt.training.evaluate import held_out_losses
from mlpt.training.group import Group
from mlpt.training.hooks import StepHook
from mlpt.training.optimizer import (
    OptimizerConfig,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from mlpt.training.outer import Outer
from mlpt.training.schedule import ScheduleConfig, check_schedule, learning_rate
from mlpt.training.tracker import Tracker

Event = dict[str, Any]  # plain JSON values: what the display and the logs are told


class TrainConfig(Settings):
    """How the inner loop runs. Batch sizes count blocks."""

    steps: int = Field(1000, gt=0, description="optimiser steps")
    tokens: int | None = Field(None, gt=0, description="budget in tokens; when given, it sets the steps")
    batch_size: int = Field(32, gt=0, description="blocks in a global step")
    micro_batch_size: int | None = Field(
        None, gt=0, description="blocks in one forward pass; default: a worker's share"
    )
    draw: Draw = Field("step", description="how objectives are drawn from the mixture")
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    compile: bool = Field(False, description="torch.compile the model")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    log_every: int = Field(10, gt=0)
    evaluate_every: int = Field(0, ge=0, description="steps between held-out evaluations; 0: only before and after")
    evaluate_batches: int = Field(16, gt=0)
    checkpoint_every: int = Field(500, gt=0, description="steps; rounded up to a multiple of meta.interval")
    keep: int = Field(3, gt=0, description="checkpoints kept besides the best")

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> "TrainConfig":
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"train.batch_size {self.batch_size} is not a multiple of train.micro_batch_size {self.micro_batch_size}"
            )
        return self

    def total_steps(self, block_size: int) -> int:
        """Steps of the run: `steps`, or as many as the token budget needs."""
        return self.steps if self.tokens is None else math.ceil(self.tokens / (self.batch_size * block_size))

    def micro_batches(self, world: int) -> int:
        """Micro-batches in a global step: at least one for each rank."""
        return self.batch_size // self.micro_batch_size if self.micro_batch_size else min(world, self.batch_size)


@dataclass
class Splits:
    """The three parts of a corpus: training, meta-dev (selection and meta-learning) and test (reported)."""

    train: Blocks
    dev: Blocks
    test: Blocks


@dataclass
class _Meter:
    """Losses since the last flush: tensors on the device, so that no step waits for them."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, loss: Tensor) -> None:
        value = loss.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1


class Loop:
    """One rank of one run. `run()` trains from the last whole checkpoint, or from the start, to the end."""

    def __init__(
        self,
        config: TrainConfig,
        model: Encoder,
        splits: Splits,
        outer: Outer,
        group: Group,
        run_dir: Path,
        seed: int,
        hooks: Sequence[StepHook] = (),
        tell: Callable[[Event], None] = lambda event: None,
        interrupted: Callable[[int], bool] = lambda step: False,
        tensorboard: bool = True,
    ):
        self.config = config
        self.model = model.to(group.device)
        self.splits = splits
        self.outer = outer
        self.group = group
        self.run_dir = run_dir
        self.seed = seed
        self.hooks = list(hooks)
        self.tell = tell if group.leads else lambda event: None
        self.interrupted = interrupted
        self.tensorboard = tensorboard
        self.step = 0
        self.block_size = splits.train.block_size
        self.total_steps = config.total_steps(self.block_size)
        self.micro_batches = config.micro_batches(group.world)
        if self.micro_batches < group.world:
            raise UserError(
                f"{group.world} workers need at least as many micro-batches a step, and there are {self.micro_batches}; "
                "lower train.micro_batch_size or raise train.batch_size"
            )
        check_schedule(config.schedule, self.total_steps)
        self.sampler = Sampler(len(splits.train), config.batch_size, seed)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=config.precision == "fp16")
        self.checkpoints = Checkpoints(run_dir / "checkpoints", config.keep)
        self.checkpoint_every = _rounded_up(config.checkpoint_every, outer.interval if outer.learns else 1)
        self._forward = self._wrapped()
        self._meter = _Meter()
        self._window: dict[str, list[float]] = {}  # objective -> [sum, count] since the last log line
        self._best = math.inf
        self._before: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary (plain JSON values, the same on every rank but for the timings)."""
        resumed_at = self._restore()
        tracker = Tracker(self.run_dir, resumed_at, self.tensorboard) if self.group.leads else None
        begun = time.perf_counter()
        try:
            self.outer.start()
            if not self._before:
                self._before = self._evaluate(self.splits.test)
                self._record(tracker, {"held_out_before": self._before})
            self._train(tracker, resumed_at)
            seconds = time.perf_counter() - begun
            after = self._evaluate(self.splits.test)
            self._record(tracker, {"held_out": after})
        finally:
            if tracker is not None:
                tracker.close()
        return self._summary(after, seconds, resumed_at)

    def _train(self, tracker: Tracker | None, resumed_at: int) -> None:
        if tracker is not None and resumed_at == 0:
            tracker.policy(self.outer.policy, 0)
        self._since_log = (time.perf_counter(), self.step)
        while True:
            self._adopt(tracker)
            stopping = self.step >= self.total_steps or self.interrupted(self.step)
            if stopping or (self.step % self.checkpoint_every == 0 and self.step != resumed_at):
                self._checkpoint()
            if stopping:
                break
            if self.outer.launch_due(self.step):
                self._flush()
                self.outer.launch(self.step, self.model, self.optimizer, self._rate())
                self._adopt(tracker)  # lag 0: the answer counts from this very step
            self._train_step()
            if self.step % self.config.log_every == 0 or self.step == self.total_steps:
                self._log(tracker)
            if self.config.evaluate_every and self.step % self.config.evaluate_every == 0:
                self._select(self._evaluate(self.splits.dev), tracker)
        self.checkpoints.wait()

    def _train_step(self) -> None:
        for hook in self.hooks:
            hook.before_step(self.step, self.model, self.optimizer)
        set_learning_rate(self.optimizer, self._rate())
        self.optimizer.zero_grad(set_to_none=True)
        mixture = self.outer.policy.mixture
        drawn = draw_objectives(self.config.draw, mixture, self.seed, self.step, self.micro_batches)
        mine = range(self.group.rank, self.micro_batches, self.group.world)
        passes = [(slot, name, weight) for slot in mine for name, weight in drawn[slot]]
        for at, (slot, name, weight) in enumerate(passes):
            self._micro_batch(slot, name, weight, last=at == len(passes) - 1)
        self.scaler.unscale_(self.optimizer)
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        for hook in self.hooks:
            hook.after_step(self.step, self.model, self.optimizer)

    def _micro_batch(self, slot: int, name: str, weight: float, last: bool) -> None:
        """Forward and backward of one objective on one micro-batch; gradients are averaged over ranks at the last."""
        tokens = self.splits.train.tokens(self.sampler.rows(self.step, slot, self.micro_batches))
        noise = torch_generator(self.seed, f"noise/{name}", self.step, slot)
        inputs = self.model.objectives[name].corrupt(tokens, noise).to(self.group.device)
        # The global generator serves dropout alone, and starts at its own address for every micro-batch.
        torch.manual_seed(address(self.seed, "dropout", self.step, slot))
        share = len(tokens) / self.config.batch_size * self.group.world
        wrapped = self._forward if isinstance(self._forward, DistributedDataParallel) else None
        with contextlib.nullcontext() if last or wrapped is None else wrapped.no_sync():
            with torch.autocast(
                self.group.device.type, _DTYPES[self.config.precision], self.config.precision != "float32"
            ):
                loss = self._forward(name, inputs)
            self.scaler.scale(loss * (weight * share)).backward()
        self._meter.add(name, loss)

    def _adopt(self, tracker: Tracker | None) -> None:
        answer = self.outer.adopt_if_due(self.step, self.model)
        if answer is not None and tracker is not None:
            tracker.policy(answer.policy, self.step)
            report = {
                "meta": dict(answer.report),
                "mixture": dict(answer.policy.mixture),
                "policy": answer.policy.version,
            }
            tracker.log(self.step, report)
            self.tell({"event": "policy", "step": self.step, **report})

    def _flush(self) -> None:
        """Sum the meter over ranks, and hand it to the evidence of the next update and to the next log line."""
        names = sorted(self.model.objectives)
        table = torch.zeros(len(names), 2, dtype=torch.float64)
        for at, name in enumerate(names):
            if name in self._meter.sums:
                table[at] = torch.tensor([self._meter.sums[name].item(), self._meter.counts[name]])
        self._meter = _Meter()
        sums_and_counts = dict(zip(names, self.group.sum(table).tolist(), strict=True))
        drawn = {name: pair for name, pair in sums_and_counts.items() if pair[1]}
        for name, (total, count) in drawn.items():
            if not math.isfinite(total):
                raise UserError(
                    f"the {name} loss is not finite near step {self.step}; lower train.optimizer.lr, "
                    "or resume with train.precision=float32"
                )
            window = self._window.setdefault(name, [0.0, 0.0])
            window[0] += total
            window[1] += count
        self.outer.observe(
            {name: int(count) for name, (_, count) in drawn.items()},
            {name: total for name, (total, _) in drawn.items()},
        )

    def _log(self, tracker: Tracker | None) -> None:
        self._flush()
        now = time.perf_counter()
        since, step = self._since_log
        self._since_log = (now, self.step)
        values = {
            "tokens": self.step * self.config.batch_size * self.block_size,
            "loss": {name: total / count for name, (total, count) in self._window.items()},
            "learning_rate": self._rate(),
            "mixture": dict(self.outer.policy.mixture),
            "tokens_per_second": (self.step - step) * self.config.batch_size * self.block_size / (now - since),
            "meta_seconds": self.outer.stall_seconds + self.outer.launch_seconds,
        }
        self._window = {}
        self._record(tracker, values)
        self.tell({"event": "step", "step": self.step, "steps": self.total_steps, **values})

    def _evaluate(self, blocks: Blocks) -> dict[str, float]:
        return held_out_losses(
            self.model,
            self.model.objectives,
            blocks,
            self.config.evaluate_batches,
            self.config.batch_size,
            self.seed,
            self.group,
        )

    def _select(self, losses: dict[str, float], tracker: Tracker | None) -> None:
        """Log a meta-dev evaluation, and keep the checkpoint of this step if it is the best so far."""
        self._record(tracker, {"dev": losses})
        self.tell({"event": "evaluation", "step": self.step, "dev": losses})
        score = losses.get("mlm", sum(losses.values()) / len(losses))
        if score < self._best:
            self._best = score
            self._checkpoint()
            if self.group.leads:
                self.checkpoints.wait()
                self.checkpoints.mark_best(self.step)

    def _checkpoint(self) -> None:
        self._flush()
        self.outer.settle()
        for hook in self.hooks:
            hook.before_save(self.step, self.model)
        if not self.group.leads:
            return
        outer_state, outer_tensors = self.outer.state()
        hook_states = {hook.name: hook.state() for hook in self.hooks}
        state = {
            "tokens": self.step * self.config.batch_size * self.block_size,
            "outer": outer_state,
            "hooks": {name: state for name, (state, _) in hook_states.items()},
            "scaler": self.scaler.state_dict(),
            "window": self._window,
            "best": self._best,
            "before": self._before,
        }
        tensors = {
            "model": dict(self.model.state_tensors()),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
            "outer": outer_tensors,
            "hooks": {f"{name}/{key}": t for name, (_, named) in hook_states.items() for key, t in named.items()},
        }
        self.checkpoints.save(self.step, state, tensors)
        self.tell({"event": "checkpoint", "step": self.step})

    def _restore(self) -> int:
        """Load the newest whole checkpoint on every rank; the step to go on from, 0 for a fresh run."""
        step = self.group.share(self._newest() if self.group.leads else None)
        if step == 0:
            return 0
        checkpoint = self.checkpoints.load(step)
        self._load(checkpoint)
        return step

    def _newest(self) -> int:
        found = self.checkpoints.latest(say=lambda text: self.tell({"event": "warning", "text": text}))
        return 0 if found is None else found.step

    def _load(self, checkpoint: Checkpoint) -> None:
        state, tensors = checkpoint.state, checkpoint.tensors
        self.step = checkpoint.step
        self.model.load_state_tensors(tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, tensors.get("optimizer", {}))
        self.outer.load_state(state["outer"], tensors.get("outer", {}))
        self.scaler.load_state_dict(state["scaler"])
        self._window = {name: list(pair) for name, pair in state["window"].items()}
        self._best, self._before = state["best"], state["before"]
        for hook in self.hooks:
            named = tensors.get("hooks", {})
            own = {key.partition("/")[2]: t for key, t in named.items() if key.partition("/")[0] == hook.name}
            hook.load_state(state["hooks"].get(hook.name, {}), own)

    def _wrapped(self) -> Any:
        """The callable that training steps go through: compiled if asked, and DDP when there are several ranks."""
        forward: Any = torch.compile(self.model) if self.config.compile else self.model
        if self.group.world == 1:
            return forward
        # Heads of objectives that a step doesn't draw get no gradient.
        return DistributedDataParallel(forward, broadcast_buffers=False, find_unused_parameters=True)

    def _rate(self) -> float:
        step = self.step
        for hook in self.hooks:
            step = hook.schedule_step(step)
        return learning_rate(self.config.schedule, step, self.total_steps, self.config.optimizer.lr)

    def _record(self, tracker: Tracker | None, values: dict[str, Any]) -> None:
        if tracker is not None:
            tracker.log(self.step, values)

    def _summary(self, after: dict[str, float], seconds: float, resumed_at: int) -> dict[str, Any]:
        trained = (self.step - resumed_at) * self.config.batch_size * self.block_size
        return {
            "steps": self.step,
            "tokens": self.step * self.config.batch_size * self.block_size,
            "finished": self.step >= self.total_steps,
            "resumed_at": resumed_at,
            "seconds": seconds,
            "tokens_per_second": trained / seconds,
            "held_out_before": self._before,
            "held_out": after,
            "unigram_entropy": self.splits.test.unigram_entropy(),
            "mixture": dict(self.outer.policy.mixture),
            "policy_version": self.outer.policy.version,
            "meta": {
                "stall_seconds": self.outer.stall_seconds,
                "launch_seconds": self.outer.launch_seconds,
                "learner_seconds": self.outer.learner_seconds,
            },
        }


_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _rounded_up(steps: int, unit: int) -> int:
    return math.ceil(steps / unit) * unit
