"""Fine-tuning, as work for the step loop: what it has in common on one task and on many.

Its ranks add their gradients in one sum after their passes: a batch may hold fewer micro-batches than there are ranks.
"""

import math
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mlpt.downstream.config import DownstreamConfig
from mlpt.downstream.loading import mask_gradients
from mlpt.downstream.place import Place
from mlpt.errors import UserError
from mlpt.logs import Event
from mlpt.randomness import address
from mlpt.sparsity.hooks import PrunedStayZero
from mlpt.training.compiling import compiled_for_any_shape, why_not_compile
from mlpt.training.group import Group
from mlpt.training.loop import Loop
from mlpt.training.optimizer import make_optimizer
from mlpt.training.state import load_model_tensors, model_tensors
from mlpt.training.tracker import Tracker
from mlpt.training.work import M, Pace, Tensors, Work

Say = Callable[[str], None]
Shown = Callable[[int, int, str], None]  # steps done, steps of all, how it goes
S = TypeVar("S")  # the scores of one evaluation: plain JSON values
_LOG_STEPS = 10  # steps between looks at the loss; each waits for the device


def own_randomness(group: Group) -> AbstractContextManager[None]:
    """Inside, torch's global streams may be seeded and drawn from; outside they are as they were."""
    return torch.random.fork_rng(devices=[group.device] if group.device.type == "cuda" else [])


class Finetuning(Work[M], Generic[M, S]):
    """One rank of one fine-tuning. A subclass says what a step trains on and how that is scored.

    masks   by parameter name (bool, True: kept); pruned weights stay zero.
    rate    the schedule's peak. total, every: steps, and steps between evaluations.
    name    what people call it by. place: for checkpoints, which end with it, and `metrics.jsonl`; what was asked lies
            there in the file `asked`.
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
        place: Place,
        asked: str,
        group: Group,
        say: Say,
        show: Shown,
    ) -> None:
        self.settings, self.seed, self.name = config, seed, name
        self.place, self.folder = place, place.folder
        self.group, self.device = group, group.device
        self.say: Say = say if group.leads else lambda text: None
        self._shown: Shown = show if group.leads else lambda done, total, note: None
        self.model = model.to(self.device)
        self.masks = {name: mask.to(self.device) for name, mask in masks.items()}
        self.hooks = [PrunedStayZero(self.masks)] if masks else []
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        saves = config.checkpoint_every
        self.pace = Pace(total, rate, config.schedule, config.clip, _LOG_STEPS, every, saves, "evaluation")
        self.evaluations: list[tuple[int, S]] = []
        self.best: dict[str, Tensor] = {}
        self.stopped, self.diverged = "", False  # why it ended before its last step
        self.seconds = self.steps_per_second = 0.0  # of training, over all resumes
        self._loss = torch.zeros((), device=self.device)  # summed since the last line of metrics.jsonl
        self.last_loss = torch.zeros_like(self._loss)  # of the last step
        self.checkpoints = place.checkpoints(2, asked, self.say)
        self.tracker = Tracker(self.folder, group, self._hear)
        self.loop = Loop(self)

    @abstractmethod
    def scores(self) -> S:
        """Of the model as it is, on all dev splits; the same on every rank."""

    @abstractmethod
    def value(self, scores: S) -> float:
        """What the best evaluation has most of."""

    def figures(self, mean: float, last: Tensor) -> dict[str, Any]:
        """A line of `metrics.jsonl`, from the mean loss since the line before it and the last step's."""
        return {"loss": mean}

    def train(self) -> None:
        """Train to the end, from the last checkpoint if there is one; the model is then the one to keep."""
        self.loop.run()
        self.seconds = self.tracker.training.seconds
        self.steps_per_second = self.loop.step / max(self.seconds, 1e-9)
        if not self.evaluations:
            raise UserError(f"{self.name}: {self.stopped or 'nothing was evaluated'}")
        if self.settings.keep_model != "last":
            load_model_tensors(self.model, self.best)

    def for_training(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, a pass through the model, as training calls it: compiled where that was asked for and can be."""
        if not self.settings.compile:
            return function
        reason = why_not_compile(self.device)
        if reason is not None:
            self.say(f"compile has no effect: {reason}")
            return function
        return compiled_for_any_shape(function, self.settings.compile_mode, self.device)

    def forget_checkpoints(self) -> None:
        """When the results are written."""
        if self.group.leads:
            shutil.rmtree(self.checkpoints.folder, ignore_errors=True)

    def best_evaluation(self) -> tuple[int, S]:
        """The step and the scores of the best one, the earliest of equals."""
        return max(self.evaluations, key=lambda one: self.value(one[1]))

    @contextmanager
    def passes(self, step: int) -> Iterator[None]:
        yield
        sum_gradients(self.model.parameters(), self.group)
        if self.masks:
            mask_gradients(self.model, self.masks)

    def noise(self, step: int, micro_batch: M) -> int:
        return address(self.seed, self.dropout, step, micro_batch.slot)

    def examine(self, step: int, losses: Sequence[Tensor], norm: Tensor) -> tuple[bool, bool]:
        """Every step is taken, without waiting for the device; `log` sees a loss that is not finite."""
        self.last_loss = self.group.sum(sum(losses, torch.zeros((), device=self.device)))
        self._loss += self.last_loss
        return True, False

    def log(self, step: int, rate: float) -> None:
        mean = float(self._loss) / ((step - 1) % _LOG_STEPS + 1)
        self._loss.zero_()
        if math.isfinite(mean):
            self.tracker.log(step, self.figures(mean, self.last_loss))
            return
        self.tracker.log(step, {"loss": None})
        self.has_ended = self.diverged = True
        self.stopped = f"the loss was not finite at step {step}; {self.advice}"
        self.say(f"{self.name}: {self.stopped}")

    def evaluate(self, step: int) -> bool:
        """Score the model, and keep its weights in memory where it has never been this good."""
        scores = self.scores()
        better = all(self.value(scores) > self.value(earlier) for _, earlier in self.evaluations)
        self.evaluations.append((step, scores))
        self.tracker.log(step, {"dev": scores})
        if better:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in model_tensors(self.model).items()}
        elif self.settings.patience is not None:
            since = sum(earlier > self.best_evaluation()[0] for earlier, _ in self.evaluations)
            if since >= self.settings.patience:
                self.has_ended = True
                self.stopped = f"no better {self.measure} in {self.settings.patience} evaluations"
        return False

    def show(self, step: int) -> None:
        note = ""
        if self.evaluations:
            best_step, scores = self.best_evaluation()
            note = f"best {self.measure} {self.value(scores):.4f} at step {best_step}"
        self._shown(step, self.pace.steps, note)

    def state(self, step: int) -> tuple[Mapping[str, Any], Tensors]:
        return {"evaluations": self.evaluations, "loss": float(self._loss)}, {"best": self.best}

    def load_state(self, values: Mapping[str, Any], tensors: Tensors) -> None:
        self.best = dict(tensors.get("best", {}))
        self.evaluations = [(step, scores) for step, scores in values["evaluations"]]
        self._loss.fill_(values["loss"])

    def _hear(self, event: Event) -> None:
        if event["event"] == "warning":
            self.say(event["text"])
        elif event["event"] == "resumed":
            self.say(f"{self.name}: going on from step {event['step']}")


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
