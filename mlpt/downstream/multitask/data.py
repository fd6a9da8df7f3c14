"""Tasks for multi-task fine-tuning: loaded, tokenised once, and collated into mixed batches."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpt.downstream.evaluate import check_labels, check_metric
from mlpt.downstream.multitask.model import LabelDtype, TaskBatch, label_tensor, rows_of_tasks
from mlpt.downstream.samplers import Row
from mlpt.errors import UserError
from mlpt.models.config import room_for_tokens
from mlpt.randomness import numpy_generator
from mlpt.tasks import Example, Task, TaskData, TaskSource, load_task
from mlpt.tasks.batching import passes
from mlpt.tasks.features import NO_LABEL, Features, SpanConfig, make_features
from mlpt.tasks.holding_out import first_rows, rows_together
from mlpt.tasks.task import Kind


@dataclass
class TaskSet:
    """The tasks of one run, by task id: `data[i]` holds the rows, `features[i]` the tokens of each split in use.

    length  most tokens of a row.
    """

    data: list[TaskData]
    features: list[dict[str, Features]]
    length: int

    @property
    def names(self) -> list[str]:
        return [data.task.name for data in self.data]

    @property
    def outputs(self) -> dict[str, int]:
        """Task name -> outputs of its decoder (1 for a regression)."""
        return {data.task.name: data.task.outputs for data in self.data}

    @property
    def kinds(self) -> dict[str, Kind]:
        """Task name -> its kind."""
        return {data.task.name: data.task.kind for data in self.data}

    def classes(self, train: Sequence[Features]) -> list[int | np.ndarray]:
        """By task id, what a prediction chooses among: classes; of a span the tokens of each row of `train`."""
        return [
            features.lengths if data.task.kind == "span" else data.task.outputs
            for data, features in zip(self.data, train, strict=True)
        ]


def read_tasks(names: Sequence[str], source: TaskSource) -> list[TaskData]:
    """The rows of every task. Raises `UserError` for one without train or dev rows, or with some unlabelled."""
    taken = []
    for name in names:
        data = load_task(name, source)
        if "train" not in data.splits or not data.dev_splits:
            there = ", ".join(data.splits) or "none"
            raise UserError(f"task '{name}' needs a train and a dev file to fine-tune on; splits found: {there}")
        check_metric(data.task, None)
        check_labels(data, ("train", *data.dev_splits))
        taken.append(data)
    return taken


def tokenise_tasks(
    tasks: Sequence[TaskData],
    tokenizer: Any,
    encoder_config: Any,
    max_length: int,
    span: SpanConfig,
    cache: Path | None = None,
    predict_test: bool = True,
) -> TaskSet:
    """The tokens of every task's splits in use, in rows of at most `max_length` or as many as the model takes.

    A span's context is cut into overlapping windows, as `span` says.
    """
    room = room_for_tokens(encoder_config, tokenizer.pad_token_id) or max_length
    length = min(max_length, room, tokenizer.model_max_length)
    types = getattr(encoder_config, "type_vocab_size", 0) > 1
    features = []
    for data in tasks:
        wanted = ["train", *data.dev_splits, *(data.test_splits if predict_test else [])]
        features.append(
            {
                split: cached_features(cache, data.task, data.splits[split], tokenizer, length, types, span)
                for split in wanted
            }
        )
    return TaskSet(list(tasks), features, length)


def cached_features(
    folder: Path | None,
    task: Task,
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    types: bool,
    span: SpanConfig,
) -> Features:
    """The tokens of `examples`, from `folder` if they were tokenised before.

    The file is named by a digest of all that they depend on: the task, every example, the whole tokenizer, the length,
    the types, and how a span's windows lie. It holds no task ids, so the order of tasks cannot make it stale (CA-8).
    """
    if folder is None:
        return make_features(task, examples, tokenizer, max_length, types, span)
    path = folder / f"{task.name}-{_digest(task, examples, tokenizer, max_length, types, span)}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            numbers = {name: int(arrays[name]) for name in ("pad", "stride") if name in arrays.files}
            kept = {name: arrays[name] for name in arrays.files if name not in numbers}
            return Features(**{"types": None, "labels": None, **kept, **numbers})
    made = make_features(task, examples, tokenizer, max_length, types, span)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        arrays = {name: value for name, value in vars(made).items() if value is not None}
        np.savez(file, **arrays)
    partial.replace(path)
    return made


def _digest(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, types: bool, span: SpanConfig
) -> str:
    digest = hashlib.blake2b(digest_size=12)
    digest.update(json.dumps([asdict(task), max_length, types], default=str).encode())
    if task.kind == "span":
        digest.update(span.model_dump_json(include={"doc_stride", "question_length", "answer_length"}).encode())
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    for call in ("truncation", "padding"):  # what the last call asked for, which is no part of the tokenizer
        described.pop(call, None)
    digest.update(json.dumps([described, tokenizer.pad_token_id, tokenizer.truncation_side]).encode())
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()


def held_out(
    features: Features, examples: Sequence[Example], rows: int, seed: int, name: str
) -> tuple[Features, Features]:
    """(training rows, at most `rows` and a fifth that a policy's rule may look at), drawn by `seed`.

    examples  those that `features` were made of. All windows of one, and all that are on one passage or question, are
              on the same side.
    """
    together = rows_together(examples)
    order = [together[one] for one in numpy_generator(seed, f"meta-dev rows of {name}").permutation(len(together))]
    dev, rest = first_rows(order, max(1, min(rows, len(examples) // 5)))
    if not len(dev):
        dev, rest = np.array(order[0]), order[1:]
    train = np.concatenate(rest) if rest else dev
    return features.take(np.sort(train)), features.take(np.sort(dev))


class Collator:
    """Makes a `TaskBatch` of (task, row) pairs, padded to the longest row; `tasks` are the rows of each task by id."""

    def __init__(self, tasks: Sequence[Features], label_dtype: LabelDtype = "task"):
        self.tasks, self.label_dtype = list(tasks), label_dtype
        self.lengths = [features.lengths for features in self.tasks]
        self.spans = {task for task, features in enumerate(self.tasks) if features.characters is not None}
        self.words = {task for task, features in enumerate(self.tasks) if features.words is not None}
        self.per_token = self.spans | self.words  # their labels are `spans` and `words` of a batch

    def __call__(self, rows: Sequence[Row]) -> TaskBatch:
        """A batch of `rows`, in their order."""
        lengths = torch.from_numpy(np.array([self.lengths[task][row] for task, row in rows]))
        mask = torch.arange(int(lengths.max())).unsqueeze(0) < lengths.unsqueeze(1)  # (batch, longest)
        tasks = [task for task, _ in rows]
        ids = [_row(self.tasks[task], self.tasks[task].tokens, row) for task, row in rows]
        places, labels = rows_of_tasks(tasks), self._labels(rows)
        labelled = places if self.per_token and labels is not None else {}
        return TaskBatch(
            input_ids=_padded(ids, mask, self.tasks[0].pad),
            attention_mask=mask,
            task_ids=torch.tensor(tasks),
            rows=places,
            labels=labels,
            token_type_ids=self._types(rows, mask),
            spans={task: self._answers(task, rows, labelled[task]) for task in self.spans & set(labelled)},
            words={task: self._words(task, rows, labelled[task], mask) for task in self.words & set(labelled)},
        )

    def _answers(self, task: int, rows: Sequence[Row], places: Tensor) -> Tensor:
        labels = self.tasks[task].labels
        assert labels is not None
        return torch.from_numpy(labels[[rows[place][1] for place in places.tolist()]])

    def _words(self, task: int, rows: Sequence[Row], places: Tensor, mask: Tensor) -> Tensor:
        labels = self.tasks[task].labels
        assert labels is not None
        own = [_row(self.tasks[task], labels, rows[place][1]) for place in places.tolist()]
        return _padded(own, mask[places], NO_LABEL)

    def chunks(self, rows: Sequence[Row], tokens: int, most: int | None = None) -> Iterator[np.ndarray]:
        """Places in `rows`, in parts of at most `tokens` padded tokens and `most` rows: see `passes`."""
        lengths = np.array([self.lengths[task][row] for task, row in rows])
        for places in passes(np.arange(len(rows)), lengths, tokens, most):
            yield places.copy()  # some are views that run backwards, which torch does not take

    def _labels(self, rows: Sequence[Row]) -> Tensor | None:
        labels = [self.tasks[task].labels for task, _ in rows]
        if any(own is None for own in labels):
            return None
        found = [
            0 if task in self.per_token else own[row].item()  # type: ignore[index]
            for own, (task, row) in zip(labels, rows, strict=True)
        ]
        return label_tensor(found, self.label_dtype)

    def _types(self, rows: Sequence[Row], mask: Tensor) -> Tensor | None:
        """None where no task of the run has a second text: the model then takes zeros by itself."""
        if all(features.types is None for features in self.tasks):
            return None
        types = []
        for task, row in rows:
            own = self.tasks[task]
            length = int(self.lengths[task][row])
            types.append(np.zeros(length, dtype=np.int64) if own.types is None else _row(own, own.types, row))
        return _padded(types, mask, 0)


def _row(features: Features, values: np.ndarray, row: int) -> np.ndarray:
    return values[features.offsets[row] : features.offsets[row + 1]]


def _padded(values: Sequence[np.ndarray], mask: Tensor, fill: int) -> Tensor:
    """(batch, longest) int64: `values` where `mask` is True, `fill` elsewhere."""
    padded = torch.full(mask.shape, fill, dtype=torch.int64)
    padded[mask] = torch.from_numpy(np.concatenate(values).astype(np.int64))
    return padded
