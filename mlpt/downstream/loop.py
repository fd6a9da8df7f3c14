"""The one step loop of fine-tuning, on one task or on many, in one process or on several ranks.

Rows, heads and dropout are addressed by (seed, step, micro-batch). So a killed fine-tuning goes on to the very weights
that it would have had, and several ranks compute what one does, up to the order of float additions.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mlpt.downstream.config import DownstreamConfig
from mlpt.downstream.loading import mask_gradients
from mlpt.errors import UserError
from mlpt.randomness import address
from mlpt.storage.checkpoint import Checkpoint, Checkpoints
from mlpt.storage.state import State
from mlpt.training.group import Group
from mlpt.training.optimizer import make_optimizer, set_learning_rate
from mlpt.training.schedule import check_schedule, learning_rate
from mlpt.training.state import load_model_tensors, load_optimizer_tensors, model_tensors, optimizer_tensors
from mlpt.training.tracker import Tracker

Say = Callable[[str], None]
Shown = Callable[[int, int, str], None]  # steps done, steps of all, how it goes
S = TypeVar("S")  # the scores of one evaluation: plain JSON values
P = TypeVar("P")  # what one micro-batch is made of
_LOG_STEPS = 10  # steps between looks at the loss; each waits for the device


def own_randomness(group: Group) -> AbstractContextManager[None]:
    """Inside, torch's global streams may be seeded and drawn from; outside they are as they were."""
    return torch.random.fork_rng(devices=[group.device] if group.device.type == "cuda" else [])


class Finetuning(Generic[P, S]):
    """One rank of one fine-tuning while it trains. A subclass says what a step trains on and how that is scored.

    masks   by parameter name (bool, True: kept); pruned weights stay zero.
    rate    the schedule's peak. total, every: steps, and steps between evaluations.
    name    what people call it by. folder: for checkpoints, which end with it, and `metrics.jsonl`.
    say     hears lines for people, `show` after each step how far it is; both on rank 0 alone.
    """

    dropout = "finetune/dropout"  # the address of its noise
    measure = "score"  # what `value` is called
    advice = "lower the learning rate"  # where the loss is not finite

    def __init__(
        self,
        config: DownstreamConfig,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        seed: int,
        rate: float,
        total: int,
        every: int,
        name: str,
        folder: Path,
        group: Group,
        say: Say,
        show: Shown,
    ) -> None:
        check_schedule(config.schedule, total)
        self.settings, self.seed, self.rate, self.total, self.every = config, seed, rate, total, every
        self.name, self.folder, self.group, self.device = name, folder, group, group.device
        self.say: Say = say if group.leads else lambda text: None
        self.show: Shown = show if group.leads else lambda done, total, note: None
        self.model = model.to(self.device)
        self.masks = {name: mask.to(self.device) for name, mask in masks.items()}
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.step = 0
        self.evaluations: list[tuple[int, S]] = []
        self.best: dict[str, Tensor] = {}
        self.stopped, self.diverged = "", False  # why it ended before its last step
        self.seconds = self.steps_per_second = 0.0
        checkpoints = folder / "checkpoints"
        self.checkpoints = Checkpoints(checkpoints, 2, f"remove {checkpoints} and run the same command again")
        self._loss = torch.zeros((), device=self.device)  # summed since the last line of metrics.jsonl
        self._tracker: Tracker | None = None

    def micro_batches(self) -> list[P]:
        """Those of the coming step, the same on every rank. Asked for once a step, in order, and before the forward
        passes: it leaves the model in the mode that they run in."""
        raise NotImplementedError(f"{type(self).__name__}.micro_batches")

    def loss_of(self, micro_batch: P) -> Tensor:
        """Scalar loss of one micro-batch times its share of the step: they add up to the step's loss."""
        raise NotImplementedError(f"{type(self).__name__}.loss_of")

    def scores(self) -> S:
        """Of the model as it is, on all dev splits; the same on every rank."""
        raise NotImplementedError(f"{type(self).__name__}.scores")

    def value(self, scores: S) -> float:
        """What the best evaluation has most of."""
        raise NotImplementedError(f"{type(self).__name__}.value")

    def figures(self, mean: float, last: Tensor) -> dict[str, Any]:
        """A line of `metrics.jsonl`, from the mean loss since the line before it and the last step's."""
        return {"loss": mean}

    def state(self) -> State:
        """What a checkpoint must hold besides what every fine-tuning has."""
        return State()

    def load_state(self, state: State) -> None:
        """The inverse of `state`."""

    def train(self) -> None:
        """Train to the end, from the last checkpoint if there is one; the model is then the one to keep."""
        position = self._resume()
        self._tracker = Tracker(self.folder, position) if self.group.leads else None
        begun, first_step = time.perf_counter(), self.step
        try:
            while self.step < self.total and not self.stopped:
                self._train_step()
        finally:
            self.checkpoints.join()  # whoever goes on in this process writes into the same folder
            if self._tracker is not None:
                self._tracker.close()
        self.seconds = time.perf_counter() - begun
        self.steps_per_second = (self.step - first_step) / max(self.seconds, 1e-9)
        self.checkpoints.wait()
        if not self.evaluations:
            raise UserError(f"{self.name}: {self.stopped or 'nothing was evaluated'}")
        if self.settings.keep_model != "last":
            load_model_tensors(self.model, self.best)

    def forget_checkpoints(self) -> None:
        """When the results are written."""
        if self.group.leads:
            shutil.rmtree(self.checkpoints.folder, ignore_errors=True)

    def best_evaluation(self) -> tuple[int, S]:
        """The step and the scores of the best one, the earliest of equals."""
        return max(self.evaluations, key=lambda one: self.value(one[1]))

    def record(self, values: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        if self._tracker is not None:
            self._tracker.log(self.step, values)

    def one_step(self) -> Tensor:
        """One optimiser step of all ranks together; its mean loss, on the device. The caller counts the step."""
        micro_batches = self.micro_batches()
        rate = learning_rate(self.settings.schedule, self.step, self.total, self.rate)
        set_learning_rate(self.optimizer, rate)
        loss = torch.zeros((), device=self.device)
        for number, micro_batch in enumerate(micro_batches):
            if number % self.group.world != self.group.rank:
                continue
            torch.manual_seed(address(self.seed, self.dropout, self.step, number))
            part = self.loss_of(micro_batch)
            part.backward()
            loss += part.detach()
        sum_gradients(self.model.parameters(), self.group)
        if self.masks:
            mask_gradients(self.model, self.masks)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.group.sum(loss)

    def _train_step(self) -> None:
        loss = self.one_step()
        self._loss += loss
        self.step += 1
        if self.step % _LOG_STEPS == 0 or self.step == self.total:
            self._log(loss)
        if (self.step % self.every == 0 or self.step == self.total) and not self.stopped:
            self.evaluate()
        if self.step % self.settings.checkpoint_every == 0 and self.step < self.total and not self.stopped:
            self._save()
        self.show(self.step, self.total, self._so_far())

    def _so_far(self) -> str:
        if not self.evaluations:
            return ""
        step, scores = self.best_evaluation()
        return f"best {self.measure} {self.value(scores):.4f} at step {step}"

    def _log(self, last: Tensor) -> None:
        mean = float(self._loss) / ((self.step - 1) % _LOG_STEPS + 1)
        self._loss.zero_()
        if not math.isfinite(mean):
            self.record({"loss": None})
            self.diverged = True
            self.stopped = f"the loss was not finite at step {self.step}; {self.advice}"
            self.say(f"{self.name}: {self.stopped}")
            return
        self.record(self.figures(mean, last))

    def evaluate(self) -> None:
        """Score the model, and keep its weights where it has never been this good."""
        scores = self.scores()
        better = all(self.value(scores) > self.value(earlier) for _, earlier in self.evaluations)
        self.evaluations.append((self.step, scores))
        self.record({"dev": scores})
        if better:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in model_tensors(self.model).items()}
        elif self.settings.patience is not None:
            since = sum(step > self.best_evaluation()[0] for step, _ in self.evaluations)
            if since >= self.settings.patience:
                self.stopped = f"no better {self.measure} in {self.settings.patience} evaluations"

    def _save(self) -> None:
        if self._tracker is None:
            return
        own = self.state()
        state = {
            "evaluations": self.evaluations,
            "loss": float(self._loss),
            "own": own.values,
            "metrics_position": self._tracker.position(),
        }
        tensors = {
            "model": model_tensors(self.model),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
            "best": self.best,
            "own": own.tensors,
        }
        self.checkpoints.save(self.step, state, tensors)

    def _resume(self) -> int:
        """Take up the last whole checkpoint if there is one; returns the position in `metrics.jsonl`."""
        found = self.checkpoints.latest(self.say) if self.group.leads else None
        step, mark = self.group.share((found.step, found.mark) if found else (0, None))
        if not step:
            return 0
        return self._load(found or self.checkpoints.load(step, mark))

    def _load(self, saved: Checkpoint) -> int:
        try:
            own = State(saved.state["own"], saved.tensors.get("own", {}))
        except KeyError as error:
            raise UserError(
                f"checkpoint {saved.path} was written by another version of mlpt; go on with that one, or begin again "
                "with --overwrite"
            ) from error
        load_model_tensors(self.model, saved.tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, saved.tensors["optimizer"])
        self.best = saved.tensors.get("best", {})
        self.evaluations = [(step, scores) for step, scores in saved.state["evaluations"]]
        self.step = saved.step
        self._loss.fill_(saved.state["loss"])
        self.load_state(own)
        self.say(f"{self.name}: going on from step {self.step}")
        return int(saved.state["metrics_position"])


def sum_gradients(parameters: Iterable[nn.Parameter], group: Group) -> None:
    """Give every rank the sum of all ranks' gradients; a parameter that no rank's loss reached keeps None."""
    if group.world == 1:
        return
    trainable = [one for one in parameters if one.requires_grad]
    reached = group.any(*(one.grad is not None for one in trainable))
    shared = [one for one, is_reached in zip(trainable, reached, strict=True) if is_reached]
    own = [torch.zeros_like(one) if one.grad is None else one.grad for one in shared]
    flat = group.sum(torch.cat([gradient.flatten() for gradient in own]))
    for one, part in zip(shared, flat.split([one.numel() for one in shared]), strict=True):
        one.grad = part.view_as(one)
