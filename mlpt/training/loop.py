"""The one step loop: every kind of pretraining here is this loop with other arms, parameters, rules and hooks.

A global step is cut into micro-batches that don't depend on how many ranks there are; rows, noise, dropout and draws
are addressed by (seed, step, micro-batch). A run is the same at any world size, up to the order of float additions.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpt.data.batch import Split
from mlpt.errors import UserError, resume_command
from mlpt.logs import Event
from mlpt.meta.policy import MIXTURE
from mlpt.models.hooks import StepHook, all_as_saved
from mlpt.randomness import address
from mlpt.reporting.boards import Boards
from mlpt.stopping import RunStopped
from mlpt.storage.checkpoint import Checkpoint
from mlpt.storage.mirror import Remote, run_checkpoints
from mlpt.storage.state import State
from mlpt.training.compiling import exchanging, wrapped
from mlpt.training.config import TrainConfig
from mlpt.training.corruption import Replay, check_ranks
from mlpt.training.group import Group
from mlpt.training.meter import Meter, Seen, add_up, from_json, to_json
from mlpt.training.nonfinite import NonfiniteSteps, gradient_norm
from mlpt.training.optimizer import make_optimizer, set_learning_rate
from mlpt.training.outer import Outer
from mlpt.training.prefetch import Address, Prefetch
from mlpt.training.pretraining import MicroBatch, Pretraining
from mlpt.training.schedule import check_schedule, learning_rate
from mlpt.training.speed import MachineUse, flops_per_token
from mlpt.training.state import load_model_tensors, load_optimizer_tensors, trained_tensors
from mlpt.training.stopwatch import Stopwatch
from mlpt.training.tracker import Tracker

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Loop:
    """One rank of one run. `run()` trains from the last whole checkpoint, or from the start, to the end."""

    def __init__(
        self,
        config: TrainConfig,
        work: Pretraining,
        outer: Outer,
        group: Group,
        run_dir: Path,
        hooks: Sequence[StepHook] = (),
        tell: Callable[[Event], None] = lambda event: None,
        must_save: Callable[[int], bool] = lambda step: False,
        should_stop: Callable[[], bool] = lambda: False,
        boards: Boards | None = None,
        remote: Remote | None = None,
        replay_every: int | None = None,
        compare_ranks: bool = True,
    ):
        self.config, self.work = config, work
        self.model = work.model.to(group.device)
        self.outer = outer
        self.group = group
        self.run_dir = run_dir
        self.seed = work.seed
        self.hooks = list(hooks)
        frozen = [name for name, parameter in self.model.named_parameters() if not parameter.requires_grad]
        self._altered = [name for name in frozen if any(hook.alters(name) for hook in self.hooks)]
        self.tell = tell if group.leads else lambda event: None
        self.must_save = must_save  # asked on every rank before every step: write a checkpoint now?
        self.should_stop = should_stop  # asked on every rank after every step; one rank that says so is enough
        self.step = 0
        self.total_steps = config.total_steps(work.block_size)
        check_schedule(config.schedule, self.total_steps)
        if config.precision != "float32":
            # With dropout the CPU's attention takes its plain path, which without this flag (it is not only for CUDA)
            # casts to float32 and back.
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=config.precision == "fp16")
        self.checkpoints = run_checkpoints(run_dir, config.keep, remote, self._warn)
        self.training, self.busy = Stopwatch(), Stopwatch()
        flops = flops_per_token(self.model.backbone.base_model, self.model.config, work.block_size)
        self._use = MachineUse(flops, group.device, _DTYPES[config.precision])
        self._nonfinite = NonfiniteSteps(config, group, self.checkpoints.run, self._saved_step, self._warn)
        self._replay = Replay(replay_every, self.model, group, self.checkpoints, self._warn)
        self._boards, self._prefetch = boards, Prefetch(work.inputs, group.device)
        self._forward = wrapped(self.model, config, group, self._warn)
        self._meter = Meter()
        self._window: dict[str, Seen] = {}  # losses since the last log line
        self._best: float | None = None
        self._before: dict[str, float] = {}
        self._metrics_bytes, self._last_log = 0, (0.0, 0)
        self._stopping, self._compare_ranks = False, compare_ranks

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary (plain JSON values).

        Its `seconds` are those of training, `busy_seconds` also those of the evaluations before and after; both are of
        the whole run, over all resumes. Raises `RunStopped`, with everything saved, when it should stop.
        """
        resumed_at = self._restore()
        tracker = None
        if self.group.leads:
            if self._boards is not None:
                self._boards.open(self.run_dir, resumed_at, self._warn)
            tracker = Tracker(self.run_dir, self._metrics_bytes, self._boards)
        try:
            if self.outer.learns:
                self._say_doing("starting the meta-learner")
            self.outer.start(self.model)
            self.busy.start()
            if not self._before:
                self._say_doing("measuring held-out losses before training")
                self._before = self._evaluate("test")
                self._record(tracker, {"held_out_before": self._before})
            self.training.start()
            self._train(tracker, resumed_at)
            self.training.stop()
            self._say_doing("measuring held-out losses after training")
            after = self._evaluate("test")
            self._record(tracker, {"held_out": after})
            self.busy.stop()
        finally:
            self._prefetch.close()
            self._forward = self.model  # DDP must not outlive its process group, whose destructor could then hang
            self.checkpoints.join()
            if tracker is not None:
                tracker.close()
        return self._summary(after, resumed_at)

    def _train(self, tracker: Tracker | None, resumed_at: int) -> None:
        if tracker is not None and resumed_at == 0:
            tracker.policy(self.outer.policy, 0)
        self._last_log = (time.perf_counter(), self.step)
        self._use.begin(self.training.seconds)
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
                self.outer.launch(self.step, self.model, self.optimizer, self._rate(), self._altered, self.work)
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
        mine = self.work.own(self.work.plan(self.step, self.outer.draw(self.work.exhausted())))
        self._replay.begin(self.step)
        with self.outer.made.step(self.step, self.model):
            self._run_passes(mine)
            if self._replay.is_due(self.step):
                self._check_passes(mine)
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model.parameters(), self.config.clip)
        sound, self._stopping = self._nonfinite.examine(self.step, norm, self._meter.losses(), self.should_stop())
        if sound:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.outer.made.close(self.step, self.model, sound, norm, self.config.clip)
        self._meter.close(skipped=not sound)
        self.step += 1
        for hook in self.hooks:
            hook.after_step(self.step, self.model, self.optimizer)

    def _run_passes(self, mine: Sequence[MicroBatch]) -> None:
        coming = [(self.step, one) for one in mine[1:]] + [self._first_of_next()]
        for micro_batch, after in zip(mine, coming, strict=True):
            self._micro_batch(micro_batch, after, last=micro_batch is mine[-1])

    def _first_of_next(self) -> Address | None:
        following = self.step + 1
        certain = following < self.total_steps and self.outer.stays(following)
        return self.work.first_of(following, self.outer.mixture(self.work.exhausted())) if certain else None

    def _check_passes(self, mine: Sequence[MicroBatch]) -> None:
        """Make the passes of this step again and compare them, bit for bit."""
        kept, first = self._meter, list(self._meter.losses().values())

        def again() -> list[Tensor]:
            self._meter = Meter()
            self.optimizer.zero_grad(set_to_none=True)
            self._run_passes(mine)
            return list(self._meter.losses().values())

        if not self._replay.check(self.step, first, again):
            kept.replace_open(self._meter)
        self._meter = kept

    def _saved_step(self) -> int | None:
        """The step of this machine's newest checkpoint."""
        self.checkpoints.join()
        return max(self.checkpoints.steps(), default=None)

    def _micro_batch(self, micro_batch: MicroBatch, after: Address | None, last: bool) -> None:
        """Forward and backward of one arm on one micro-batch; DDP averages gradients at the last one."""
        name, slot = micro_batch.arm.name, micro_batch.slot
        with self._use.making_batches():
            inputs = self._prefetch.get((self.step, micro_batch), after)
        # The global generator serves dropout alone, and starts at its own address for every micro-batch.
        torch.manual_seed(address(self.seed, f"dropout/{name}", self.step, slot))
        share = len(micro_batch.rows) / self.config.batch_size * self.group.world
        kept = self.outer.made.passes(name, micro_batch.weight * share, self.scaler.get_scale())
        with kept, exchanging(self._forward, last):
            with torch.autocast(
                self.group.device.type, _DTYPES[self.config.precision], self.config.precision != "float32"
            ):
                loss = self._forward(micro_batch.arm.objective, inputs)
            self.scaler.scale(loss * (micro_batch.weight * share)).backward()
        self._meter.add(name, loss, micro_batch.share)

    def _adopt(self, tracker: Tracker | None) -> None:
        report = self.outer.adopt_if_due(self.step, self.model)
        if report is not None and tracker is not None:
            policy = self.outer.policy
            for text in report.get("warnings", ()):
                self._warn(text)
            tracker.policy(policy, self.step)
            report = {"meta": dict(report), "mixture": dict(policy.values(MIXTURE)), "policy": policy.version}
            self._record(tracker, report)
            self.tell({"event": "policy", "step": self.step, **report})

    def _flush(self) -> None:
        """Share the losses since the last flush: the next update's evidence, and the next log line."""
        for seen in self._meter.take(self.work.trained, self.group):
            add_up(self._window, seen)
            self.outer.observe(seen)

    def _log(self, tracker: Tracker | None) -> None:
        self._flush()
        now = time.perf_counter()
        since, step = self._last_log
        self._last_log = (now, self.step)
        values = {
            "tokens": self.work.tokens(self.step),
            "loss": {name: seen.mean for name, seen in self._window.items() if seen.mean is not None},
            "learning_rate": self._rate(),
            "mixture": dict(self.outer.policy.values(MIXTURE)),
            **self._nonfinite.figures(),
            "tokens_per_second": self.work.tokens(self.step - step) / (now - since),
            **self._use.lately(now - since),
            "meta_stall_seconds": self.outer.stall_seconds + self.outer.launch_seconds,
        }
        self._window = {}
        self._record(tracker, values)
        self.tell({"event": "step", "step": self.step, "steps": self.total_steps, **values})

    def _evaluate(self, split: Split) -> dict[str, float]:
        with all_as_saved(self.hooks, self.model):
            return self.work.losses(split)

    def _evaluate_if_due(self, tracker: Tracker | None) -> bool:
        """Evaluate on meta-dev when it is time; True when the run has never been this good."""
        if not self.config.evaluate_every or self.step % self.config.evaluate_every:
            return False
        losses = self._evaluate("dev")
        self._record(tracker, {"dev": losses, "seconds": self.training.seconds})
        self.tell({"event": "evaluation", "step": self.step, "dev": losses})
        score = self.work.target_loss(losses)
        is_best = math.isfinite(score) and (self._best is None or score < self._best)
        self._best = score if is_best else self._best
        return is_best

    def _checkpoint(self, tracker: Tracker | None, is_best: bool) -> None:
        self._nonfinite.check_weights(self.step, self.model.parameters())
        if self._compare_ranks:
            check_ranks(self.step, self.model, self.optimizer, self.group, self.checkpoints)
        self._flush()
        self.outer.settle()
        with all_as_saved(self.hooks, self.model):
            for hook in self.hooks:
                hook.save(self.step, self.model)
        trained = trained_tensors(self.model, self.optimizer)
        if tracker is None:
            return
        outer = self.outer.state()
        hook_states = {hook.name: hook.state() for hook in self.hooks}
        state = {
            "tokens": self.work.tokens(self.step),
            "outer": outer.values,
            "work": self.work.state().values,
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
            **trained,
            "outer": outer.tensors,
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
        self.outer.load_state(State(state["outer"], tensors.get("outer", {})))
        self.work.load_state(State(state["work"]))
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

    def _record(self, tracker: Tracker | None, values: dict[str, Any]) -> None:
        if tracker is not None:
            tracker.log(self.step, values)

    def _summary(self, after: dict[str, float], resumed_at: int) -> dict[str, Any]:
        rate = self.work.tokens(self.step) / self.training.seconds
        return {
            "steps": self.step,
            "tokens": self.work.tokens(self.step),
            "block_size": self.work.block_size,
            "resumed_at": resumed_at,
            "seconds": self.training.seconds,
            "busy_seconds": self.busy.seconds,
            "tokens_per_second": rate,
            **self._use.figures(rate / self.group.world, self.training.seconds),
            "skipped_steps": self._nonfinite.skipped,
            "held_out_before": self._before,
            "held_out": after,
            "unigram_entropy": self.work.sources.test.unigram_entropy(),
            "epochs": self.work.epochs(),
            "mixture": dict(self.outer.policy.values(MIXTURE)),
            "policy_version": self.outer.policy.version,
            "meta": self.outer.seconds(),
        }
