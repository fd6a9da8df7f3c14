"""The fine-tuning of one cell: which rows a step trains on, how they are scored, and what is left behind."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

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
from mlpt.downstream.loading import Base, apply_masks, build_model
from mlpt.downstream.losses import loss_of, word_loss
from mlpt.downstream.results import CellResult, Scores
from mlpt.downstream.submission import write_predictions, write_submission
from mlpt.downstream.work import Finetuning, Say, Shown
from mlpt.downstream.written import WrittenTask
from mlpt.models.quiet import quiet
from mlpt.models.saved_tokenizer import save_tokenizer
from mlpt.outputs import write_json
from mlpt.sparsity.artefacts import MaskFile, save_masks
from mlpt.tasks import Task, TaskData
from mlpt.tasks.batching import draw_subset, epoch_batches, passes
from mlpt.tasks.features import Features
from mlpt.training.group import Group

RESULT, SETTINGS = "result.json", "cell.json"


@dataclass
class Prepared:
    """What the cells of one task share: rows, token ids and the saved weights. Picklable; treat it as read-only.

    length        tokens of the longest row or window.
    contents      digests of rows, model and masks, for the cells' identity.
    masks         absolute path of the masks in force; None: dense.
    lost_answers  spans: split -> share of the answers that are whole in no window.
    notes         lines for people about what had to be done otherwise than asked.
    written       the task as sequences in and out; None: the model has the task's head.
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
    written: WrittenTask | None = None

    def warnings(self) -> list[str]:
        """All that people should know before they read the scores, a line each."""
        return [*self.data.warnings(), *self.notes]


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch: its number in the step, its rows, and its share of what the step's rows weigh."""

    slot: int
    rows: np.ndarray
    share: float


class CellRun(Finetuning[MicroBatch, Scores]):
    """One rank of one cell while it trains."""

    def __init__(
        self,
        cell: FinetuneCell,
        prepared: Prepared,
        group: Group,
        say: Say,
        show: Shown = lambda done, total, note: None,
    ) -> None:
        self.cell, self.config, self.prepared = cell, cell.config, prepared
        self.task: Task = prepared.data.task
        self.metric = self.measure = check_metric(self.task, for_task(self.config.metric, cell.task))
        self.select_split = check_split(prepared.data, for_task(self.config.select_split, cell.task))
        self.rows = self._training_rows()
        self.lengths, self.weights = self.rows.lengths, self.rows.weights
        self.per_epoch = math.ceil(len(self.rows) / self.config.batch_size)
        total = self.config.max_steps or math.ceil(self.config.epochs * self.per_epoch)
        every = self.config.steps_between_evaluations(self.per_epoch)
        model = build_model(prepared.base, self.task, cell.seed)
        masks: dict[str, Tensor] = {}
        self.mask_file: MaskFile | None = None
        if prepared.masks is not None:
            masks, self.mask_file = apply_masks(prepared.masks, model)
        seed, rate, place = cell.seed, cell.learning_rate, cell.place
        super().__init__(
            self.config, model.train(), masks, seed, rate, total, every, cell.name, place, SETTINGS, group, say, show
        )
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])
        self._forward = self.for_training(self.model)

    def _training_rows(self) -> Features:
        features = self.prepared.features["train"]
        if self.config.subset is None:
            return features
        kept = draw_subset(len(self.prepared.data.splits["train"]), self.config.subset, self.cell.seed)
        return features.take(kept)

    def result(self) -> CellResult:
        """Train to the end, from the last checkpoint if there is one, and write what was found."""
        folder = self.folder
        if self.group.leads:
            folder.mkdir(parents=True, exist_ok=True)
            identity = self.cell.identity(self.prepared.contents) | {NAMED: self.cell.named()}
            (folder / SETTINGS).write_text(json.dumps(identity, indent=1))
        self.train()
        result = self._result()
        if self.group.leads and self.config.keep_model != "none":
            self._save_model()
        self._write_predictions()
        if self.group.leads:
            write_json(folder / RESULT, result.to_json())
            self.place.finish(RESULT)
        self.forget_checkpoints()
        return result

    def plan(self, step: int) -> list[MicroBatch]:
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            how, written = self.config, self.config.text_to_text
            shuffle = written is None or written.shuffle
            made = epoch_batches(self.lengths, how.batch_size, self.seed, epoch, how.length_window, shuffle)
            self._epoch = (epoch, made)
        rows = self._epoch[1][place]
        whole = max(1.0, self.weights[rows].sum())
        parts = passes(rows, self.lengths, self.config.tokens_per_batch, self.config.micro_batch_size)
        return [MicroBatch(slot, part, float(self.weights[part].sum() / whole)) for slot, part in enumerate(parts)]

    def loss_of(self, micro_batch: MicroBatch, after: MicroBatch | None) -> Tensor:
        with autocast(self.device, self.config.precision):
            outputs = self._forward(**self.rows.batch(micro_batch.rows, self.device))
        targets = self.rows.targets(micro_batch.rows, self.device)
        if self.prepared.written is not None:
            return word_loss(outputs.logits, targets) * micro_batch.share  # of tokens: the same mean
        return loss_of(self.task, outputs, targets) * micro_batch.share

    def scores(self) -> Scores:
        examples = self.prepared.data.splits
        dev = self.prepared.data.dev_splits
        return {split: score(self.task, examples[split], self._predict(split).values) for split in dev}

    def value(self, scores: Scores) -> float:
        return scores[self.select_split][self.metric]

    def _predict(self, split: str) -> Predictions:
        features, examples, config = self.prepared.features[split], self.prepared.data.splits[split], self.config
        per_token, tokens = self.task.per_token, config.tokens_per_batch
        if self.prepared.written is not None:  # every rank predicts all of it
            return self.prepared.written.predict(self.model, examples, features, tokens, self.device, config.precision)
        outputs = outputs_of(self.model, features, tokens, self.device, config.precision, per_token, self.group)
        return predict(self.task, examples, features, outputs, config.span, self.prepared.data.may_be_empty)

    def _result(self) -> CellResult:
        data = self.prepared.data
        best_step, best = self.best_evaluation()
        return CellResult(
            task=self.cell.task,
            learning_rate=self.cell.learning_rate,
            seed=self.cell.seed,
            metric=self.metric,
            select_split=self.select_split,
            best=best,
            best_step=best_step,
            last=self.evaluations[-1][1],
            steps=self.loop.step,
            majority={split: majority(self.task, data.splits["train"], data.splits[split]) for split in best},
            rows=self.rows.examples,
            windows=len(self.rows) if self.task.kind == "span" or self.prepared.written else None,
            max_length=self.prepared.length,
            doc_stride=self.rows.stride,
            lost_answers=self.prepared.lost_answers,
            masks=self.prepared.masks,
            seconds=self.seconds,
            examples_per_second=self.steps_per_second * self.config.batch_size,
            folder=self.place.name,
            stopped=self.stopped,
            warnings=self.prepared.warnings(),
        )

    def _save_model(self) -> None:
        """A folder that the stock Auto classes load, with the masks of its zeros beside it."""
        with quiet():
            self.model.save_pretrained(self.folder / "model")  # type: ignore[operator]
        save_tokenizer(self.prepared.tokenizer, self.folder / "model", self.prepared.base.config)
        if self.mask_file is not None:
            save_masks(self.mask_file, self.folder / "model")

    def _write_predictions(self) -> None:
        """Of the kept model: every dev split, and test splits as the benchmark's server wants them."""
        data = self.prepared.data
        for split in self.prepared.features:
            if split == "train":
                continue
            predictions = self._predict(split)
            if not self.group.leads:
                continue
            path = self.folder / f"predictions_{split}.jsonl"
            write_predictions(path, self.task, data.splits[split], predictions)
            if split in data.test_splits:
                write_submission(self.folder / "submission", self.task, split, data.splits[split], predictions)
