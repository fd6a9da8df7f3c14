"""The one step loop: every kind of pretraining and fine-tuning is this loop over other work.

A step is cut into micro-batches that don't depend on how many ranks there are; rows, noise, dropout and draws are
addressed by (seed, step, micro-batch). A run is the same at any world size, up to the order of float additions, and one
that was killed goes on to the very weights that it would have had.
"""

from collections.abc import Callable, Sequence
from typing import Generic

import torch
from torch import Tensor

from mlpt.errors import UserError
from mlpt.models.hooks import all_as_saved
from mlpt.stopping import RunStopped
from mlpt.storage.checkpoint import Checkpoint
from mlpt.training.corruption import Replay, check_ranks
from mlpt.training.nonfinite import gradient_norm
from mlpt.training.optimizer import set_learning_rate
from mlpt.training.schedule import check_schedule, learning_rate
from mlpt.training.state import load_model_tensors, load_optimizer_tensors, trained_tensors
from mlpt.training.work import M, Work


class Loop(Generic[M]):
    """One rank of one run. `run()` trains from the last whole checkpoint, or from the start, to the end.

    must_save  asked on every rank before every step: write a checkpoint now?
    """

    def __init__(
        self,
        work: Work[M],
        must_save: Callable[[int], bool] = lambda step: False,
        replay_every: int | None = None,
        compare_ranks: bool = False,
    ):
        check_schedule(work.pace.schedule, work.pace.steps)
        self.work, self.model, self.must_save = work, work.model, must_save
        self.group, self.checkpoints, self.tracker = work.group, work.checkpoints, work.tracker
        self.step = self.resumed_at = 0
        self._replay = Replay(replay_every, self.model, self.group, self.checkpoints, self.tracker.warn)
        self._stopping, self._compare_ranks = False, compare_ranks

    def run(self) -> None:
        """Train to the end. Raises `RunStopped`, with everything saved, when it should stop."""
        self._restore()
        self.tracker.open(self.resumed_at)
        try:
            self.work.start(self.step)
            self.tracker.training.start()
            self._train()
            self.tracker.training.stop()
            self.work.finish(self.step)
        finally:
            self.work.close()
            self.checkpoints.join()
            self.tracker.close()

    def _train(self) -> None:
        work, pace = self.work, self.work.pace
        while True:
            work.adopt(self.step)
            is_new = self.step != self.resumed_at
            is_best = is_new and self._evaluate_if_due()
            at_end = self.step >= pace.steps or work.has_ended
            scheduled = self._stopping or self.step % pace.checkpoint_every == 0
            due = pace.ends_with == "checkpoint" if at_end else scheduled
            if (self.must_save(self.step) or is_best or due) and is_new:
                self._checkpoint(is_best)
            if is_new:
                work.show(self.step)
            if at_end:
                break
            if self._stopping:
                self.checkpoints.wait()
                raise RunStopped(self.step)
            work.launch(self.step, self._rate())
            self.train_step()
            if self.step % pace.log_every == 0 or self.step == pace.steps:
                work.log(self.step, self._rate())
        self.checkpoints.wait()

    def train_step(self) -> None:
        """One optimiser step; `self.step` is one more after it."""
        work = self.work
        for hook in work.hooks:
            hook.before_step(self.step, self.model, work.optimizer)
        mine = [one for one in work.plan(self.step) if self.group.makes(one.slot)]
        set_learning_rate(work.optimizer, self._rate())
        self._replay.begin(self.step)
        with work.passes(self.step):
            losses = self._replay.check(self.step, self._run_passes(mine), lambda: self._passes_again(mine))
        work.scaler.unscale_(work.optimizer)
        norm = gradient_norm(self.model.parameters(), work.pace.clip)
        sound, self._stopping = work.examine(self.step, losses, norm)
        if sound:
            work.scaler.step(work.optimizer)
        work.scaler.update()
        self.step += 1
        for hook in work.hooks:
            hook.after_step(self.step, self.model, work.optimizer)
        work.optimizer.zero_grad(set_to_none=True)

    def _run_passes(self, mine: Sequence[M]) -> list[Tensor]:
        """Forward and backward of this rank's micro-batches; their losses."""
        work, losses = self.work, []
        for one, after in zip(mine, [*mine[1:], None], strict=True):
            # The global generator serves dropout alone, and starts at its own address for every micro-batch.
            torch.manual_seed(work.noise(self.step, one))
            with work.one_pass(one, last=after is None):
                loss = work.loss_of(one, after)
                work.scaler.scale(loss).backward()
            losses.append(loss.detach())
        return losses

    def _passes_again(self, mine: Sequence[M]) -> list[Tensor]:
        self.work.optimizer.zero_grad(set_to_none=True)
        self.work.again()
        return self._run_passes(mine)

    def _rate(self) -> float:
        step, pace = self.step, self.work.pace
        for hook in self.work.hooks:
            step = hook.schedule_step(step)
        return learning_rate(pace.schedule, step, pace.steps, pace.rate)

    def _evaluate_if_due(self) -> bool:
        """True when the run has never been this good, and a checkpoint must keep it."""
        pace = self.work.pace
        due = pace.evaluate_every and self.step % pace.evaluate_every == 0
        at_end = pace.ends_with == "evaluation" and self.step == pace.steps
        if self.work.has_ended or not (due or at_end):
            return False
        with all_as_saved(self.work.hooks, self.model):
            return self.work.evaluate(self.step)

    def _checkpoint(self, is_best: bool) -> None:
        work = self.work
        if self._compare_ranks:
            check_ranks(self.step, self.model, work.optimizer, self.group, self.checkpoints)
        values, tensors = work.state(self.step)
        with all_as_saved(work.hooks, self.model):
            for hook in work.hooks:
                hook.save(self.step, self.model)
        trained = trained_tensors(self.model, work.optimizer)
        if not self.group.leads:
            return
        hook_states = {hook.name: hook.state() for hook in work.hooks}
        state = {
            **values,
            "hooks": {name: state for name, (state, _) in hook_states.items()},
            "scaler": work.scaler.state_dict(),
            **self.tracker.state(),
        }
        of_hooks = {f"{name}/{key}": t for name, (_, named) in hook_states.items() for key, t in named.items()}
        self.checkpoints.save(self.step, state, {**trained, **tensors, "hooks": of_hooks}, is_best)
        self.tracker.tell({"event": "checkpoint", "step": self.step})

    def _restore(self) -> None:
        """Load the newest whole checkpoint, if there is one, on every rank."""
        found = self.checkpoints.latest(self.tracker.warn) if self.group.leads else None
        step, mark = self.group.share((found.step, found.mark) if found else (0, None))
        if step:
            self._load(found or self.checkpoints.load(step, mark))
            self.tracker.tell({"event": "resumed", "step": step})

    def _load(self, saved: Checkpoint) -> None:
        work, state, tensors = self.work, saved.state, saved.tensors
        try:
            load_model_tensors(self.model, tensors["model"])
            load_optimizer_tensors(self.model, work.optimizer, tensors.get("optimizer", {}))
            work.load_state(state, tensors)
            if state["scaler"]:  # empty where no loss was scaled; one that is now begins as in a new run
                work.scaler.load_state_dict(state["scaler"])
            self.tracker.load_state(state)
            for hook in work.hooks:
                named = tensors.get("hooks", {})
                own = {key.partition("/")[2]: t for key, t in named.items() if key.partition("/")[0] == hook.name}
                hook.load_state(state["hooks"].get(hook.name, {}), own)
        except KeyError as error:
            raise UserError(
                f"checkpoint {saved.path} has no {error}: another version of mlpt wrote it; go on with that one, or "
                f"{self.checkpoints.begin_again}"
            ) from error
        self.step = self.resumed_at = saved.step
