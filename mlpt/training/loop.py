"""The one step loop: every kind of pretraining here is this loop with other objectives, parameters, rules and hooks.

A global step is cut into micro-batches that don't depend on how many ranks there are; rows, noise, dropout and draws
are addressed by (seed, step, micro-batch). A run is the same at any world size, up to the order of float additions.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mlpt.data.blocks import Blocks
from mlpt.data.sampler import Sampler
from mlpt.errors import UserError, resume_command
from mlpt.models.encoder import Encoder
from mlpt.models.hooks import StepHook, all_as_saved
from mlpt.randomness import address, torch_generator
from mlpt.stopping import RunStopped
from mlpt.training.checkpoint import Checkpoint
from mlpt.training.compiling import wrapped
from mlpt.training.config import TrainConfig
from mlpt.training.draw import draw_objectives
from mlpt.training.evaluate import held_out_losses
from mlpt.training.group import Group
from mlpt.training.meter import Meter, Seen, add_up, from_json, to_json
from mlpt.training.mirror import Remote, run_checkpoints
from mlpt.training.nonfinite import NonfiniteSteps, gradient_norm
from mlpt.training.optimizer import make_optimizer, set_learning_rate
from mlpt.training.outer import Outer
from mlpt.training.schedule import check_schedule, learning_rate
from mlpt.training.state import load_model_tensors, load_optimizer_tensors, model_tensors, optimizer_tensors
from mlpt.training.stopwatch import Stopwatch
from mlpt.training.tracker import Tracker

Event = dict[str, Any]  # plain JSON values: what the display and the logs are told

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Splits:
    """The three parts of a corpus: training, meta-dev (selection and meta-learning) and test (reported)."""

    train: Blocks
    dev: Blocks
    test: Blocks


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
        must_save: Callable[[int], bool] = lambda step: False,
        should_stop: Callable[[], bool] = lambda: False,
        tensorboard: bool = True,
        remote: Remote | None = None,
    ):
        self.config = config
        self.model = model.to(group.device)
        self.splits = splits
        self.outer = outer
        self.group = group
        self.run_dir = run_dir
        self.seed = seed
        self.hooks = list(hooks)
        frozen = [name for name, parameter in self.model.named_parameters() if not parameter.requires_grad]
        self._altered = [name for name in frozen if any(hook.alters(name) for hook in self.hooks)]
        self.tell = tell if group.leads else lambda event: None
        self.must_save = must_save  # asked on every rank before every step: write a checkpoint now?
        self.should_stop = should_stop  # asked on every rank after every step; one rank that says so is enough
        self.step = 0
        self.block_size = splits.train.block_size
        self.total_steps = config.total_steps(self.block_size)
        self.micro_batches = config.micro_batches
        if self.micro_batches < group.world:
            raise UserError(
                f"{group.world} workers need as many micro-batches a step, and there are {self.micro_batches}; "
                "lower train.micro_batch_size or raise train.batch_size"
            )
        check_schedule(config.schedule, self.total_steps)
        if config.precision != "float32":
            # With dropout the CPU's attention takes its plain path, which without this flag (it is not only for CUDA)
            # casts to float32 and back.
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        self.sampler = Sampler(len(splits.train), config.batch_size, seed)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=config.precision == "fp16")
        self.checkpoints = run_checkpoints(run_dir, config.keep, remote, self._warn)
        self.training, self.busy = Stopwatch(), Stopwatch()
        self._nonfinite = NonfiniteSteps(config, group, self.checkpoints.run, self._saved_step, self._warn)
        self._tensorboard = tensorboard
        self._forward = wrapped(self.model, config.compile, group, self._warn)
        self._meter = Meter()
        self._window: dict[str, Seen] = {}  # losses since the last log line
        self._best: float | None = None
        self._before: dict[str, float] = {}
        self._metrics_bytes = 0
        self._last_log = (0.0, 0)
        self._stopping = False

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary (plain JSON values).

        Its `seconds` are those of training, `busy_seconds` also those of the evaluations before and after; both are of
        the whole run, over all resumes. Raises `RunStopped`, with everything saved, when it should stop.
        """
        resumed_at = self._restore()
        tracker = (
            Tracker(self.run_dir, resumed_at, self._metrics_bytes, self._tensorboard) if self.group.leads else None
        )
        try:
            if self.outer.learns:
                self._say_doing("starting the meta-learner")
            self.outer.start()
            self.busy.start()
            if not self._before:
                self._say_doing("measuring held-out losses before training")
                self._before = self._evaluate(self.splits.test)
                self._record(tracker, {"held_out_before": self._before})
            self.training.start()
            self._train(tracker, resumed_at)
            self.training.stop()
            self._say_doing("measuring held-out losses after training")
            after = self._evaluate(self.splits.test)
            self._record(tracker, {"held_out": after})
            self.busy.stop()
        finally:
            self._forward = self.model  # DDP must not outlive its process group, whose destructor could then hang
            self.checkpoints.join()
            if tracker is not None:
                tracker.close()
        return self._summary(after, resumed_at)

    def _train(self, tracker: Tracker | None, resumed_at: int) -> None:
        if tracker is not None and resumed_at == 0:
            tracker.policy(self.outer.policy, 0)
        self._last_log = (time.perf_counter(), self.step)
        while True:
            self._adopt(tracker)
            is_new = self.step != resumed_at
            is_best = is_new and self._evaluate_if_due(tracker)
            at_end = self.step >= self.total_steps
            scheduled = at_end or self._stopping or self.step % self.config.checkpoint_every == 0
            if (self.must_save(self.step) or is_best or scheduled) and is_new:
                self._checkpoint(tracker, is_best)
            if at_end:
                break
            if self._stopping:
                self.checkpoints.wait()
                raise RunStopped(self.step)
            if self.outer.launch_due(self.step):
                self._flush()
                self.outer.launch(self.step, self.model, self.optimizer, self._rate(), self._altered)
                self._adopt(tracker)  # lag 0: the answer counts from this very step
            self.train_step()
            if self.step % self.config.log_every == 0 or self.step == self.total_steps:
                self._log(tracker)
        self.checkpoints.wait()

    def train_step(self) -> None:
        """One optimiser step; `self.step` is one more after it."""
        for hook in self.hooks:
            hook.before_step(self.step, self.model, self.optimizer)
        set_learning_rate(self.optimizer, self._rate())
        self.optimizer.zero_grad(set_to_none=True)
        drawn = draw_objectives(self.config.draw, self.outer.draw(), self.seed, self.step, self.micro_batches)
        mine = range(self.group.rank, self.micro_batches, self.group.world)
        passes = [(slot, name, weight) for slot in mine for name, weight in drawn[slot]]
        for at, (slot, name, weight) in enumerate(passes):
            self._micro_batch(slot, name, weight, last=at == len(passes) - 1)
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model.parameters(), self.config.clip)
        sound, self._stopping = self._nonfinite.examine(self.step, norm, self._meter.losses(), self.should_stop())
        if sound:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self._meter.close(skipped=not sound)
        self.step += 1
        for hook in self.hooks:
            hook.after_step(self.step, self.model, self.optimizer)

    def _saved_step(self) -> int | None:
        """The step of this machine's newest checkpoint."""
        self.checkpoints.join()
        return max(self.checkpoints.steps(), default=None)

    def _micro_batch(self, slot: int, name: str, weight: float, last: bool) -> None:
        """Forward and backward of one objective on one micro-batch; DDP averages gradients at the last one."""
        tokens = self.splits.train.tokens(self.sampler.rows(self.step, slot, self.micro_batches))
        noise = torch_generator(self.seed, f"noise/{name}", self.step, slot)
        inputs = self.model.objectives[name].corrupt(tokens, noise).to(self.group.device)
        # The global generator serves dropout alone, and starts at its own address for every micro-batch.
        torch.manual_seed(address(self.seed, f"dropout/{name}", self.step, slot))
        share = len(tokens) / self.config.batch_size * self.group.world
        alone = last or not isinstance(self._forward, DistributedDataParallel)
        with contextlib.nullcontext() if alone else self._forward.no_sync():
            with torch.autocast(
                self.group.device.type, _DTYPES[self.config.precision], self.config.precision != "float32"
            ):
                loss = self._forward(name, inputs)
            self.scaler.scale(loss * (weight * share)).backward()
        self._meter.add(name, loss, weight / self.micro_batches)

    def _adopt(self, tracker: Tracker | None) -> None:
        answer = self.outer.adopt_if_due(self.step, self.model)
        if answer is not None and tracker is not None:
            tracker.policy(answer.policy, self.step)
            mixture, version = dict(answer.policy.mixture), answer.policy.version
            report = {"meta": dict(answer.report), "mixture": mixture, "policy": version}
            self._record(tracker, report)
            self.tell({"event": "policy", "step": self.step, **report})

    def _flush(self) -> None:
        """Share the losses since the last flush: the next update's evidence, and the next log line."""
        for seen in self._meter.take(self.model.objectives, self.group):
            add_up(self._window, seen)
            self.outer.observe(seen)

    def _log(self, tracker: Tracker | None) -> None:
        self._flush()
        now = time.perf_counter()
        since, step = self._last_log
        self._last_log = (now, self.step)
        values = {
            "tokens": self._tokens(self.step),
            "loss": {name: seen.mean for name, seen in self._window.items() if seen.mean is not None},
            "learning_rate": self._rate(),
            "mixture": dict(self.outer.policy.mixture),
            **self._nonfinite.figures(),
            "tokens_per_second": self._tokens(self.step - step) / (now - since),
            "meta_stall_seconds": self.outer.stall_seconds + self.outer.launch_seconds,
        }
        self._window = {}
        self._record(tracker, values)
        self.tell({"event": "step", "step": self.step, "steps": self.total_steps, **values})

    def _evaluate(self, blocks: Blocks) -> dict[str, float]:
        batches, batch_size, names = self.config.evaluate_batches, self.config.batch_size, self.model.objectives
        with all_as_saved(self.hooks, self.model):
            return held_out_losses(self.model, names, blocks, batches, batch_size, self.seed, self.group)

    def _evaluate_if_due(self, tracker: Tracker | None) -> bool:
        """Evaluate on meta-dev when it is time; True when the run has never been this good."""
        if not self.config.evaluate_every or self.step % self.config.evaluate_every:
            return False
        losses = self._evaluate(self.splits.dev)
        self._record(tracker, {"dev": losses})
        self.tell({"event": "evaluation", "step": self.step, "dev": losses})
        score = losses.get("mlm", sum(losses.values()) / len(losses))
        is_best = math.isfinite(score) and (self._best is None or score < self._best)
        self._best = score if is_best else self._best
        return is_best

    def _checkpoint(self, tracker: Tracker | None, is_best: bool) -> None:
        self._nonfinite.check_weights(self.step, self.model.parameters())
        self._flush()
        self.outer.settle()
        with all_as_saved(self.hooks, self.model):
            for hook in self.hooks:
                hook.save(self.step, self.model)
        if tracker is None:
            return
        outer_state, outer_tensors = self.outer.state()
        hook_states = {hook.name: hook.state() for hook in self.hooks}
        state = {
            "tokens": self._tokens(self.step),
            "outer": outer_state,
            "hooks": {name: state for name, (state, _) in hook_states.items()},
            "scaler": self.scaler.state_dict(),
            "window": to_json(self._window),
            "best": self._best,
            "before": self._before,
            "metrics_bytes": tracker.position(),
            "nonfinite": self._nonfinite.state(),
            "seconds": [self.training.seconds, self.busy.seconds],
        }
        tensors = {
            "model": model_tensors(self.model),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
            "outer": outer_tensors,
            "hooks": {f"{name}/{key}": t for name, (_, named) in hook_states.items() for key, t in named.items()},
        }
        self.checkpoints.save(self.step, state, tensors, is_best)
        self.tell({"event": "checkpoint", "step": self.step})

    def _restore(self) -> int:
        """Load the newest whole checkpoint on every rank; the step to go on from, 0 for a fresh run."""
        found = None
        if self.group.leads:
            found = self.checkpoints.latest(say=self._warn)
        step, mark = self.group.share((found.step, found.mark) if found else (0, None))
        if step:
            self._load(found or self.checkpoints.load(step, mark))
            self.tell({"event": "resumed", "step": step})
        return step

    def _load(self, checkpoint: Checkpoint) -> None:
        try:
            self._load_state(checkpoint.state, checkpoint.tensors)
        except KeyError as error:
            again = resume_command(self.checkpoints.run, "--restart")
            raise UserError(
                f"checkpoint {checkpoint.path} has no {error}: another version of mlpt wrote it; go on with that "
                f"one, or begin again by `{again}`"
            ) from error

    def _load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.step = state["step"]
        load_model_tensors(self.model, tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, tensors.get("optimizer", {}))
        self.outer.load_state(state["outer"], tensors.get("outer", {}))
        self.scaler.load_state_dict(state["scaler"])
        self._window = from_json(state["window"])
        self._best, self._before, self._metrics_bytes = state["best"], state["before"], state["metrics_bytes"]
        self._nonfinite.load_state(state["nonfinite"])
        self.training.seconds, self.busy.seconds = state["seconds"]
        for hook in self.hooks:
            named = tensors.get("hooks", {})
            own = {key.partition("/")[2]: t for key, t in named.items() if key.partition("/")[0] == hook.name}
            hook.load_state(state["hooks"].get(hook.name, {}), own)

    def _say_doing(self, text: str) -> None:
        self.tell({"event": "doing", "text": text})

    def _warn(self, text: str) -> None:
        self.tell({"event": "warning", "text": text})

    def _rate(self) -> float:
        step = self.step
        for hook in self.hooks:
            step = hook.schedule_step(step)
        return learning_rate(self.config.schedule, step, self.total_steps, self.config.optimizer.lr)

    def _tokens(self, steps: int) -> int:
        return steps * self.config.batch_size * self.block_size

    def _record(self, tracker: Tracker | None, values: dict[str, Any]) -> None:
        if tracker is not None:
            tracker.log(self.step, values)

    def _summary(self, after: dict[str, float], resumed_at: int) -> dict[str, Any]:
        return {
            "steps": self.step,
            "tokens": self._tokens(self.step),
            "block_size": self.block_size,
            "resumed_at": resumed_at,
            "seconds": self.training.seconds,
            "busy_seconds": self.busy.seconds,
            "tokens_per_second": self._tokens(self.step) / self.training.seconds,
            "skipped_steps": self._nonfinite.skipped,
            "held_out_before": self._before,
            "held_out": after,
            "unigram_entropy": self.splits.test.unigram_entropy(),
            "mixture": dict(self.outer.policy.mixture),
            "policy_version": self.outer.policy.version,
            "meta": self.outer.seconds(),
        }
