"""The step loop of one fine-tuning cell, with its evaluations, best weights, checkpoints and written results.

Dropout, order and head are addressed by (seed, step), so a killed cell goes on from its last checkpoint to the very
weights that it would have had.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpt.downstream.config import FinetuneCell, for_task
from mlpt.downstream.evaluate import (
    Predictions,
    autocast,
    check_metric,
    check_split,
    majority,
    outputs_of,
    predict,
    score,
)
from mlpt.downstream.fingerprint import NAMED
from mlpt.downstream.loading import Base, apply_masks, build_model, mask_gradients, quiet
from mlpt.downstream.losses import loss_of
from mlpt.downstream.results import CellResult, Scores
from mlpt.downstream.submission import write_predictions, write_submission
from mlpt.errors import UserError
from mlpt.models.saved_tokenizer import save_tokenizer
from mlpt.randomness import address
from mlpt.sparsity.artefacts import MaskFile, save_masks
from mlpt.storage.checkpoint import Checkpoints
from mlpt.tasks import Task, TaskData
from mlpt.tasks.batching import draw_subset, epoch_batches, passes
from mlpt.tasks.features import Features
from mlpt.training.optimizer import make_optimizer, set_learning_rate
from mlpt.training.schedule import check_schedule, learning_rate
from mlpt.training.state import load_model_tensors, load_optimizer_tensors, model_tensors, optimizer_tensors
from mlpt.training.tracker import Tracker

RESULT, SETTINGS = "result.json", "cell.json"
_LOG_STEPS = 10  # steps between looks at the loss; each waits for the device


@dataclass
class Prepared:
    """What the cells of one task share: rows, token ids and the saved weights. Picklable; treat it as read-only.

    length        tokens of the longest row or window.
    contents      digests of rows, model and masks, for the cells' identity.
    masks         absolute path of the masks in force; None: dense.
    lost_answers  spans: split -> share of the answers that are whole in no window.
    notes         lines for people about what had to be done otherwise than asked.
    """

    data: TaskData
    features: dict[str, Features]
    base: Base
    tokenizer: Any
    length: int
    contents: dict[str, Any]
    masks: str | None = None
    lost_answers: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def warnings(self) -> list[str]:
        """All that people should know before they read the scores, a line each."""
        return [*self.data.warnings(), *self.notes]


class CellRun:
    """The state of one cell while it trains."""

    def __init__(
        self,
        cell: FinetuneCell,
        prepared: Prepared,
        device: torch.device,
        say: Callable[[str], None],
        show: Callable[[int, int, str], None] = lambda done, total, note: None,
    ) -> None:
        self.cell, self.config, self.prepared, self.device, self.say = cell, cell.config, prepared, device, say
        self.show = show
        self.task: Task = prepared.data.task
        self.metric = check_metric(self.task, for_task(self.config.metric, cell.task))
        self.select_split = check_split(prepared.data, for_task(self.config.select_split, cell.task))
        self.train = self._training_rows()
        self._plan()
        model = build_model(prepared.base, self.task, cell.seed)
        masks: dict[str, Tensor] = {}
        self.mask_file: MaskFile | None = None
        if prepared.masks is not None:
            masks, self.mask_file = apply_masks(prepared.masks, model)
        self.model: nn.Module = model.to(device).train()
        self.masks = {name: mask.to(device) for name, mask in masks.items()}
        self.optimizer = make_optimizer(self.model, self.config.optimizer)
        self.step = 0
        self.loss = torch.zeros((), device=device)  # summed since the last line of metrics.jsonl
        self.evaluations: list[tuple[int, Scores]] = []
        self.best: dict[str, Tensor] = {}
        self.stopped = ""
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])
        cell.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(cell.folder / "checkpoints", keep=1)

    def _training_rows(self) -> Features:
        features = self.prepared.features["train"]
        if self.config.subset is None:
            return features
        kept = draw_subset(len(self.prepared.data.splits["train"]), self.config.subset, self.cell.seed)
        return features.take(kept)

    def _plan(self) -> None:
        self.lengths, self.weights = self.train.lengths, self.train.weights
        self.per_epoch = math.ceil(len(self.train) / self.config.batch_size)
        self.total = self.config.max_steps or math.ceil(self.config.epochs * self.per_epoch)
        check_schedule(self.config.schedule, self.total)
        self.every = self.config.eval_steps or max(1, round(self.config.eval_epochs * self.per_epoch))

    def result(self) -> CellResult:
        """Train to the end, from the last checkpoint if there is one, and write what was found."""
        position = self._resume()
        identity = self.cell.identity(self.prepared.contents) | {NAMED: self.cell.named()}
        (self.cell.folder / SETTINGS).write_text(json.dumps(identity, indent=1))
        self.tracker = Tracker(self.cell.folder, position)
        begun, first_step = time.perf_counter(), self.step
        try:
            self._train()
        finally:
            self.tracker.close()
        seconds = time.perf_counter() - begun
        self.checkpoints.wait()
        result = self._finish(seconds, (self.step - first_step) * self.config.batch_size / max(seconds, 1e-9))
        (self.cell.folder / RESULT).write_text(json.dumps(result.to_json(), indent=1))
        shutil.rmtree(self.cell.folder / "checkpoints", ignore_errors=True)
        return result

    def _train(self) -> None:
        while self.step < self.total and not self.stopped:
            self.loss += self.one_step()
            self.step += 1
            if self.step % _LOG_STEPS == 0 or self.step == self.total:
                self._log(float(self.loss) / ((self.step - 1) % _LOG_STEPS + 1))
                self.loss.zero_()
            if (self.step % self.every == 0 or self.step == self.total) and not self.stopped:
                self._evaluate()
            if self.step % self.config.checkpoint_steps == 0 and self.step < self.total and not self.stopped:
                self._save()
            self.show(self.step, self.total, self._so_far())

    def _so_far(self) -> str:
        if not self.evaluations:
            return ""
        step, scores = self._best_evaluation()
        return f"best {self.metric} {self._value(scores):.4f} at step {step}"

    def one_step(self) -> Tensor:
        """One optimiser step; returns its mean loss, on the device."""
        rows = self._rows()
        rate = learning_rate(self.config.schedule, self.step, self.total, self.cell.learning_rate)
        set_learning_rate(self.optimizer, rate)
        torch.manual_seed(address(self.cell.seed, "finetune/dropout", self.step))
        loss = torch.zeros((), device=self.device)
        for part in passes(rows, self.lengths, self.config.tokens_per_batch):
            with autocast(self.device, self.config.precision):
                outputs = self.model(**self.train.batch(part, self.device))
            share = float(self.weights[part].sum() / max(1.0, self.weights[rows].sum()))
            share_of_loss = loss_of(self.task, outputs, self.train.targets(part, self.device)) * share
            share_of_loss.backward()
            loss += share_of_loss.detach()
        if self.masks:
            mask_gradients(self.model, self.masks)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _rows(self) -> np.ndarray:
        epoch, place = divmod(self.step, self.per_epoch)
        if self._epoch[0] != epoch:
            window = self.config.length_window
            batches = epoch_batches(self.lengths, self.config.batch_size, self.cell.seed, epoch, window)
            self._epoch = (epoch, batches)
        return self._epoch[1][place]

    def _log(self, loss: float) -> None:
        self.tracker.log(self.step, {"loss": loss if math.isfinite(loss) else None})
        if not math.isfinite(loss):
            self.stopped = f"the loss was not finite at step {self.step}; lower the learning rate"
            self.say(f"{self.cell.name}: {self.stopped}")

    def _evaluate(self) -> None:
        scores = {split: self._scores(split) for split in self.prepared.data.dev_splits}
        better = self._is_better(scores)
        self.evaluations.append((self.step, scores))
        self.tracker.log(self.step, {"dev": scores})
        if better:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in model_tensors(self.model).items()}
        elif self.config.patience and self._evaluations_since_best() >= self.config.patience:
            self.stopped = f"no better {self.metric} in {self.config.patience} evaluations"

    def _scores(self, split: str) -> dict[str, float]:
        return score(self.task, self.prepared.data.splits[split], self._predict(split).values)

    def _predict(self, split: str) -> Predictions:
        features, examples = self.prepared.features[split], self.prepared.data.splits[split]
        outputs = outputs_of(
            self.model,
            features,
            self.config.tokens_per_batch,
            self.device,
            self.config.precision,
            self.task.per_token,
        )
        return predict(self.task, examples, features, outputs, self.config.span)

    def _value(self, scores: Scores) -> float:
        return scores[self.select_split][self.metric]

    def _is_better(self, scores: Scores) -> bool:
        return all(self._value(scores) > self._value(earlier) for _, earlier in self.evaluations)

    def _best_evaluation(self) -> tuple[int, Scores]:
        return max(self.evaluations, key=lambda one: self._value(one[1]))  # the earliest of equals

    def _evaluations_since_best(self) -> int:
        best = self._best_evaluation()[0]
        return sum(step > best for step, _ in self.evaluations)

    def _save(self) -> None:
        state = {
            "evaluations": self.evaluations,
            "loss": float(self.loss),
            "metrics_position": self.tracker.position(),
        }
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": model_tensors(self.model),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
            "best": self.best,
        }
        self.checkpoints.save(self.step, state, tensors)

    def _resume(self) -> int:
        """Take up the last whole checkpoint if there is one; returns the position in `metrics.jsonl`."""
        saved = self.checkpoints.latest(self.say)
        if saved is None:
            return 0
        load_model_tensors(self.model, saved.tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, saved.tensors["optimizer"])
        self.best = saved.tensors.get("best", {})
        self.evaluations = [(step, scores) for step, scores in saved.state["evaluations"]]
        self.step = saved.step
        self.loss.fill_(saved.state["loss"])
        self.say(f"{self.cell.name}: going on from step {self.step}")
        return int(saved.state["metrics_position"])

    def _finish(self, seconds: float, speed: float) -> CellResult:
        if not self.evaluations:
            raise UserError(f"{self.cell.name}: {self.stopped or 'nothing was evaluated'}")
        best_step, best = self._best_evaluation()
        if self.config.keep_model != "last":
            load_model_tensors(self.model, self.best)
        if self.config.keep_model != "none":
            self._save_model()
        self._write_predictions()
        data = self.prepared.data
        return CellResult(
            task=self.cell.task,
            learning_rate=self.cell.learning_rate,
            seed=self.cell.seed,
            metric=self.metric,
            select_split=self.select_split,
            best=best,
            best_step=best_step,
            last=self.evaluations[-1][1],
            steps=self.step,
            majority={split: majority(self.task, data.splits["train"], data.splits[split]) for split in best},
            rows=self.train.examples,
            windows=len(self.train) if self.task.kind == "span" else None,
            max_length=self.prepared.length,
            doc_stride=self.train.stride,
            lost_answers=self.prepared.lost_answers,
            masks=self.prepared.masks,
            seconds=seconds,
            examples_per_second=speed,
            folder=str(self.cell.folder),
            stopped=self.stopped,
            warnings=self.prepared.warnings(),
        )

    def _save_model(self) -> None:
        """A folder that the stock Auto classes load, with the masks of its zeros beside it."""
        with quiet():
            self.model.save_pretrained(self.cell.folder / "model")  # type: ignore[operator]
        save_tokenizer(self.prepared.tokenizer, self.cell.folder / "model", self.prepared.base.config)
        if self.mask_file is not None:
            save_masks(self.mask_file, self.cell.folder / "model")

    def _write_predictions(self) -> None:
        """Of the kept model: every dev split, and test splits as the benchmark's server wants them."""
        data = self.prepared.data
        for split in self.prepared.features:
            if split == "train":
                continue
            predictions = self._predict(split)
            path = self.cell.folder / f"predictions_{split}.jsonl"
            write_predictions(path, self.task, data.splits[split], predictions)
            if split in data.test_splits:
                write_submission(self.cell.folder / "submission", self.task, split, data.splits[split], predictions)
