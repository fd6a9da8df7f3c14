"""Pretraining, as work for the step loop: arms that the policy draws, the policy's updates, and held-out losses."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlpt.meta.policy import MIXTURE
from mlpt.models.hooks import StepHook, all_as_saved
from mlpt.randomness import address
from mlpt.storage.checkpoint import Checkpoints
from mlpt.storage.state import State
from mlpt.training.arm_rows import ArmRows, MicroBatch
from mlpt.training.compiling import exchanging, wrapped
from mlpt.training.config import TrainConfig
from mlpt.training.group import Group
from mlpt.training.meter import Meter, Seen, add_up, from_json, to_json
from mlpt.training.nonfinite import NonfiniteSteps
from mlpt.training.optimizer import make_optimizer
from mlpt.training.outer import Outer
from mlpt.training.prefetch import Prefetch
from mlpt.training.speed import MachineUse, flops_per_token
from mlpt.training.tracker import Tracker
from mlpt.training.work import Pace, Tensors, Work

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Pretraining(Work[MicroBatch]):
    """One rank's training on `rows` by the policy of `outer`.

    should_stop  asked on every rank after every step; one rank that says so is enough.
    """

    def __init__(
        self,
        config: TrainConfig,
        rows: ArmRows,
        outer: Outer,
        group: Group,
        checkpoints: Checkpoints,
        tracker: Tracker,
        hooks: Sequence[StepHook] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.config, self.rows, self.outer, self.group = config, rows, outer, group
        self.checkpoints, self.tracker, self.hooks, self.should_stop = checkpoints, tracker, hooks, should_stop
        self.model = rows.model.to(group.device)
        frozen = [name for name, parameter in self.model.named_parameters() if not parameter.requires_grad]
        self._altered = [name for name in frozen if any(hook.alters(name) for hook in hooks)]
        if config.precision != "float32":
            # With dropout the CPU's attention takes its plain path, which without this flag (it is not only for CUDA)
            # casts to float32 and back.
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=config.precision == "fp16")
        steps, every = config.total_steps(rows.block_size), (config.log_every, config.evaluate_every)
        saves = config.checkpoint_every
        self.pace = Pace(steps, config.optimizer.lr, config.schedule, config.clip, *every, saves, "checkpoint")
        flops = flops_per_token(self.model.backbone.base_model, self.model.config, rows.block_size)
        self._use = MachineUse(flops, group.device, _DTYPES[config.precision])
        self._nonfinite = NonfiniteSteps(config, group, checkpoints.run, self._saved_step, tracker.warn)
        self._prefetch = Prefetch(rows.inputs, group.device)
        self._forward = wrapped(self.model, config, group, tracker.warn)
        self._meter, self._step = Meter(), 0
        self._window: dict[str, Seen] = {}  # losses since the last log line
        self._best: float | None = None
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}
        self._last_log = (0.0, 0)

    def start(self, step: int) -> None:
        if self.outer.learns:
            self._doing("starting the meta-learner")
        self.outer.start(self.model)
        self.tracker.busy.start()
        if not self._before:
            self._doing("measuring held-out losses before training")
            self._before = self._test()
            self.tracker.log(step, {"held_out_before": self._before})
        if step == 0:
            self.tracker.policy(self.outer.policy, 0)
        self._last_log = (time.perf_counter(), step)
        self._use.begin(self.tracker.training.seconds)

    def adopt(self, step: int) -> None:
        report = self.outer.adopt_if_due(step, self.model)
        if report is None:
            return
        policy = self.outer.policy
        for text in report.get("warnings", ()):
            self.tracker.warn(text)
        self.tracker.policy(policy, step)
        report = {"meta": dict(report), "mixture": dict(policy.values(MIXTURE)), "policy": policy.version}
        self.tracker.log(step, report)
        self.tracker.tell({"event": "policy", "step": step, **report})

    def evaluate(self, step: int) -> bool:
        """Measure the losses of meta-dev; the target's decides."""
        losses = self.rows.losses("dev")
        score = self.rows.target_loss(losses)
        self.tracker.log(step, {"dev": losses, "target": score, "seconds": self.tracker.training.seconds})
        self.tracker.tell({"event": "evaluation", "step": step, "dev": losses, "target": score})
        is_best = math.isfinite(score) and (self._best is None or score < self._best)
        self._best = score if is_best else self._best
        return is_best

    def state(self, step: int) -> tuple[Mapping[str, Any], Tensors]:
        self._nonfinite.check_weights(step, self.model.parameters())
        self._flush()
        self.outer.settle()
        outer = self.outer.state()
        values = {
            "tokens": self.rows.tokens(step),
            "outer": outer.values,
            "work": self.rows.state().values,
            "window": to_json(self._window),
            "best": self._best,
            "before": self._before,
            "nonfinite": self._nonfinite.state(),
        }
        return values, {"outer": outer.tensors}

    def load_state(self, values: Mapping[str, Any], tensors: Tensors) -> None:
        self.outer.load_state(State(values["outer"], tensors.get("outer", {})))
        self.rows.load_state(State(values["work"]))
        self._window = from_json(values["window"])
        self._best, self._before = values["best"], values["before"]
        self._nonfinite.load_state(values["nonfinite"])

    def launch(self, step: int, rate: float) -> None:
        if self.outer.launch_due(step):
            self._flush()
            self.outer.launch(step, self.model, self.optimizer, rate, self._altered, self.rows)
            self.adopt(step)  # lag 0: the answer counts from this very step

    def plan(self, step: int) -> list[MicroBatch]:
        self._step = step
        return self.rows.plan(step, self.outer.draw(self.rows.exhausted()))

    def passes(self, step: int) -> contextlib.AbstractContextManager[None]:
        return self.outer.made.step(step, self.model)

    @contextlib.contextmanager
    def one_pass(self, micro_batch: MicroBatch, last: bool) -> Iterator[None]:
        """DDP averages gradients at the last pass."""
        weight, scale = self._weight(micro_batch), self.scaler.get_scale()
        with self.outer.made.passes(micro_batch.arm.name, weight, scale), exchanging(self._forward, last):
            yield

    def _weight(self, micro_batch: MicroBatch) -> float:
        share = len(micro_batch.rows) / self.config.batch_size * self.group.world
        return micro_batch.weight * share

    def noise(self, step: int, micro_batch: MicroBatch) -> int:
        return address(self.rows.seed, f"dropout/{micro_batch.arm.name}", step, micro_batch.slot)

    def loss_of(self, micro_batch: MicroBatch, after: MicroBatch | None) -> Tensor:
        coming = self._first_of_next() if after is None else (self._step, after)
        with self._use.making_batches():
            inputs = self._prefetch.get((self._step, micro_batch), coming)
        precision = self.config.precision
        with torch.autocast(self.group.device.type, _DTYPES[precision], precision != "float32"):
            loss: Tensor = self._forward(micro_batch.arm.objective, inputs)
        self._meter.add(micro_batch.arm.name, loss, micro_batch.share)
        return loss * self._weight(micro_batch)

    def _first_of_next(self) -> tuple[int, MicroBatch] | None:
        following = self._step + 1
        certain = following < self.pace.steps and self.outer.stays(following)
        return self.rows.first_of(following, self.outer.mixture(self.rows.exhausted())) if certain else None

    def again(self) -> None:
        self._meter.reopen()
        self.outer.made.reopen()

    def examine(self, step: int, losses: Sequence[Tensor], norm: Tensor) -> tuple[bool, bool]:
        sound, stopping = self._nonfinite.examine(step, norm, self._meter.losses(), self.should_stop())
        self.outer.made.close(step, self.model, sound, norm, self.config.clip)
        self._meter.close(skipped=not sound)
        return sound, stopping

    def log(self, step: int, rate: float) -> None:
        self._flush()
        now = time.perf_counter()
        since, earlier = self._last_log
        self._last_log = (now, step)
        values = {
            "tokens": self.rows.tokens(step),
            "loss": {name: seen.mean for name, seen in self._window.items() if seen.mean is not None},
            "learning_rate": rate,
            "mixture": dict(self.outer.policy.values(MIXTURE)),
            **self._nonfinite.figures(),
            "tokens_per_second": self.rows.tokens(step - earlier) / (now - since),
            **self._use.lately(now - since),
            "meta_stall_seconds": self.outer.stall_seconds + self.outer.launch_seconds,
        }
        self._window = {}
        self.tracker.log(step, values)
        self.tracker.tell({"event": "step", "step": step, "steps": self.pace.steps, **values})

    def _flush(self) -> None:
        """Share the losses since the last flush: the next update's evidence, and the next log line."""
        for seen in self._meter.take(self.rows.trained, self.group):
            add_up(self._window, seen)
            self.outer.observe(seen)

    def finish(self, step: int) -> None:
        self._doing("measuring held-out losses after training")
        self._after = self._test()
        self.tracker.log(step, {"held_out": self._after})
        self.tracker.busy.stop()

    def _test(self) -> dict[str, float]:
        with all_as_saved(self.hooks, self.model):
            return self.rows.losses("test")

    def close(self) -> None:
        self._prefetch.close()
        self._forward = self.model  # DDP must not outlive its process group, whose destructor could then hang

    def summary(self, step: int, resumed_at: int) -> dict[str, Any]:
        """Of a run that has come to its end, plain JSON values.

        Its `seconds` are those of training, `busy_seconds` also those of the evaluations before and after; both are of
        the whole run, over all resumes.
        """
        seconds = self.tracker.training.seconds
        rate = self.rows.tokens(step) / seconds
        return {
            "steps": step,
            "tokens": self.rows.tokens(step),
            "block_size": self.rows.block_size,
            "resumed_at": resumed_at,
            "seconds": seconds,
            "busy_seconds": self.tracker.busy.seconds,
            "tokens_per_second": rate,
            **self._use.figures(rate / self.group.world, seconds),
            "skipped_steps": self._nonfinite.skipped,
            "held_out_before": self._before,
            "held_out": self._after,
            "unigram_entropy": self.rows.sources.test.unigram_entropy(),
            "epochs": self.rows.epochs(),
            "mixture": dict(self.outer.policy.values(MIXTURE)),
            "policy_version": self.outer.policy.version,
            "meta": self.outer.seconds(),
        }

    def _saved_step(self) -> int | None:
        """The step of this machine's newest checkpoint."""
        self.checkpoints.join()
        return max(self.checkpoints.steps(), default=None)

    def _doing(self, text: str) -> None:
        self.tracker.tell({"event": "doing", "text": text})
