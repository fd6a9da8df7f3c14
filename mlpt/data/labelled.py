"""Rows of labelled tasks as sources of a pretraining run: which rows train, which are held out, and their tokens."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from mlpt.data.batch import Batch, Source, Split
from mlpt.data.blocks import Blocks
from mlpt.data.sources import ALL, TEXTS
from mlpt.errors import UserError
from mlpt.randomness import numpy_generator
from mlpt.tasks import TASKS, Example, OwnTask, Task, TaskSource, load_task, read_task_file, task_of
from mlpt.tasks.features import Features, SpanConfig, make_features
from mlpt.tasks.holding_out import first_rows, rows_together
from mlpt.tasks.own import load_own
from mlpt.tasks.reading import TABLES

LEAST_HELD_OUT = 8  # rows; the mean loss of fewer says nothing
KINDS = ("classification", "regression", "multiple_rows")  # a label a row, not a token
TEXT_COLUMN = "text"  # of a file that is named without a description
_CPU = torch.device("cpu")


class LabelledConfig(TaskSource):
    """Where the rows of labelled tasks come from and how they are held out; also those of tasks in meta.target."""

    dev_rows: int = Field(
        256,
        ge=LEAST_HELD_OUT,
        description="of a task's training rows, at most a fifth, which nothing trains on: the meta-learner and the "
        "choice of the best step look at them; as many more are reported on where a task has no dev file",
    )
    fit_rows: int = Field(
        512, gt=0, description="training rows on which the head of a target's task that does not train is fitted"
    )


class LabelledRows:
    """Some labelled rows of a task, numbered anew; padded to the longest of a batch."""

    def __init__(self, features: Features, numbers: NDArray[np.int64], split: Split):
        """numbers: (n,) int64, the rows of `features` that these are."""
        self._features, self._numbers, self._split = features, numbers, split

    def __len__(self) -> int:
        return len(self._numbers)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The rows of these numbers, in that order, with their labels and token types."""
        chosen = self._numbers[rows]
        inputs = self._features.batch(chosen, _CPU)
        return Batch(
            inputs["input_ids"],
            rows,
            self._split,
            labels=self._features.targets(chosen, _CPU),
            types=inputs.get("token_type_ids"),
        )


def with_own_tasks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run in which `tasks` and `meta.target.tasks` name files, with tasks of those files' own instead.

    A table (mine.csv) has the columns `text` and `label`; a YAML file describes tasks as for fine-tuning.
    Raises `UserError` for a file that can't be read.
    """
    found: dict[str, OwnTask] = {}

    def names_of(words: Any) -> Any:
        if not isinstance(words, str | list | tuple):
            return words  # what is no list of names is refused where it is read
        listed = [one.strip() for one in words.split(",")] if isinstance(words, str) else list(words)
        names: list[Any] = []
        for word in listed:
            own = _own_tasks_in(word) if isinstance(word, str) else None
            found.update({one.name: one for one in own or ()})
            names += [word] if own is None else [one.name for one in own]
        return names

    changed = dict(values)
    if "tasks" in changed:
        changed["tasks"] = names_of(changed["tasks"] or [])
    meta = changed.get("meta")
    if isinstance(meta, Mapping) and isinstance(target := meta.get("target"), Mapping) and "tasks" in target:
        changed["meta"] = {**meta, "target": {**target, "tasks": names_of(target["tasks"])}}
    if found:
        labelled = dict(changed.get("labelled") or {})
        labelled["own"] = [*(labelled.get("own") or ()), *(one.model_dump() for one in found.values())]
        changed["labelled"] = labelled
    return changed


def _own_tasks_in(word: str) -> tuple[OwnTask, ...] | None:
    """The tasks of a file, with their label names; None: `word` names no file."""
    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        return tuple(_with_labels(one) for one in read_task_file(word))
    if not path.name.endswith(TABLES):
        return None
    name = path.name.partition(".")[0]
    if re.fullmatch(r"[a-z0-9_]+", name) is None:
        raise UserError(
            f"the task of {word} would be named '{name}', and names are of a-z, 0-9 and '_': rename the file, or "
            "describe it in a task file (.yaml)"
        )
    return (_with_labels(OwnTask(name=name, train=word, first=TEXT_COLUMN)),)


def _with_labels(own: OwnTask) -> OwnTask:
    """The label names are written down with the run: its heads are then known without the file."""
    if own.kind != "classification" or own.labels is not None:
        return own
    return own.model_copy(update={"labels": load_own(own, 1.0, ()).task.labels})


def check_tasks(tasks: Sequence[str], measured: Sequence[str], config: LabelledConfig, taken: Iterable[str]) -> None:
    """Raise `UserError` for what can be known without rows: unknown tasks, kinds that don't fit, names that are taken.

    measured  tasks that only the target names. taken: names of objectives and domains.
    """
    if len(set(tasks)) != len(tasks):
        raise UserError(f"tasks names a task twice: {', '.join(tasks)}")
    own = {one.name for one in config.own}
    for name in [*tasks, *measured]:
        if name in (ALL, TEXTS, *taken):
            raise UserError(
                f"the task '{name}' has the name of an objective or of text: describe it under another name in a task "
                "file (labelled.own)"
            )
        task = task_of(name, config)
        if task.kind not in KINDS:
            raise UserError(
                f"task '{name}' labels {'words' if task.kind == 'token_classification' else 'spans of texts'}, and a "
                "run trains on tasks with a label or a score for a text or a pair of texts: leave it out"
            )
        if name not in own and task.benchmark not in ("docs", "two_moons") and config.data_dir is None:
            raise UserError(
                f"task '{name}' needs its rows: set labelled.data_dir to the folder of the original files, or to hub:"
            )


def is_task(name: str, config: LabelledConfig) -> bool:
    """Whether there is a labelled task of that name."""
    return name in TASKS or any(one.name == name for one in config.own)


def labelled_source(name: str, config: LabelledConfig, blocks: Blocks) -> Source:
    """The rows of a task, shuffled, with the tokenizer of `blocks`: training rows, dev rows held out of them, and the
    task's own dev rows (where it has none: more that are held out) as test rows. Which is which follows from the task.

    Raises `UserError` for a task without labelled rows or with too few.
    """
    task = task_of(name, config)
    data = load_task(name, config, ["train", *task.dev])
    train = _labelled(data.splits.get("train", ()))
    if not train:
        raise UserError(f"task '{name}' has no labelled training rows: give its training file, or leave it out")
    reported = next((rows for split in data.dev_splits if (rows := _labelled(data.splits[split]))), [])
    held = min(config.dev_rows, len(train) // 5)
    together = rows_together(train)
    order = [together[one] for one in numpy_generator(0, f"held-out rows of {name}").permutation(len(together))]
    dev, order = first_rows(order, held)
    test_rows, order = first_rows(order, 0 if reported else held)
    if min(len(dev), len(reported or test_rows)) < LEAST_HELD_OUT:
        raise UserError(
            f"task '{name}' has {len(train)} training and {len(reported)} dev rows with labels, too few to hold "
            f"{LEAST_HELD_OUT} out of each (a fifth of the training rows at most, those of one passage together): "
            "give more"
        )
    features, rest = _features(data.task, train, blocks), np.concatenate(order)
    if reported:
        test = LabelledRows(_features(data.task, reported, blocks), np.arange(len(reported)), "test")
    else:
        test = LabelledRows(features, test_rows, "test")
    return Source(LabelledRows(features, rest, "train"), LabelledRows(features, dev, "dev"), test)


def _labelled(examples: Iterable[Example]) -> list[Example]:
    return [one for one in examples if one.label is not None]


def _features(task: Task, examples: Sequence[Example], blocks: Blocks) -> Features:
    length = min(task.max_length, blocks.block_size)
    return make_features(task, examples, blocks.tokenizer(), length, True, SpanConfig())
