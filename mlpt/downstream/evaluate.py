"""Outputs of a model on a split, the predictions that they mean, and their scores."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpt.downstream.spans import Scored, best_answers
from mlpt.downstream.words import predicted_labels
from mlpt.errors import UserError
from mlpt.tasks import Example, Task, TaskData, metrics
from mlpt.tasks.batching import passes
from mlpt.tasks.features import Features, SpanConfig
from mlpt.training.group import Group

_ROWS_A_PASS = 128  # enough to keep a device busy, few enough that sorted rows are padded little
_TEXT_METRICS = {"f1", "exact_match"}


@dataclass
class Predictions:
    """What a model says of a split.

    values  one a row or question: class id, float, 0 or 1 (rows decided one by one), or text (span); for labelled
            words a list of class ids, one a word (`words.LOST` where a word has no token).
            For questions with one right row: the number of that row within `examples`.
    n_best  spans: every question's answers with their scores, best first.
    """

    values: list[Any]
    n_best: list[list[Scored]] | None = None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast where asked for; "auto" means on a GPU."""
    wanted = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


@torch.no_grad()
def outputs_of(
    model: nn.Module,
    features: Features,
    tokens: int,
    device: torch.device,
    precision: str,
    per_token: bool = False,
    group: Group | None = None,
) -> np.ndarray:
    """Float32 logits, (rows, outputs) in the order of the rows; of a head with outputs at every token (all tokens,
    outputs), for spans start and end logits. The ranks of a `group` share the passes; all of them must ask."""
    group = group or Group()
    training = model.training
    model.eval()
    lengths = features.lengths
    parts: list[np.ndarray] = []
    all_passes = passes(np.arange(len(features)), lengths, tokens, _ROWS_A_PASS)
    dealt = [all_passes[rank :: group.world] for rank in range(group.world)]
    for rows in dealt[group.rank]:
        with autocast(device, precision):
            result = model(**features.batch(rows, device))
        if per_token:
            of_tokens = token_logits(result).float().cpu().numpy()
            parts += [of_tokens[place, : lengths[row]] for place, row in enumerate(rows)]
        else:
            parts.append(result.logits.float().cpu().numpy())
    model.train(training)
    parts = [part for of_rank in group.gather(parts) for part in of_rank]
    back = np.argsort(np.concatenate([rows for of_rank in dealt for rows in of_rank]), kind="stable")
    return np.concatenate([parts[at] for at in back]) if per_token else np.concatenate(parts)[back]


def token_logits(result: Any) -> Tensor:
    """(batch, length, outputs) of what a stock head with outputs at every token returns; of spans start and end."""
    if hasattr(result, "start_logits"):
        return torch.stack([result.start_logits, result.end_logits], dim=-1)
    logits: Tensor = result.logits
    return logits


def predict(
    task: Task,
    examples: Sequence[Example],
    features: Features,
    outputs: np.ndarray,
    span: SpanConfig,
    may_be_empty: bool = False,
) -> Predictions:
    """What `outputs` mean for a task of this kind. may_be_empty: of spans, see `TaskData.may_be_empty`."""
    if task.kind == "span":
        n_best = best_answers(examples, features, outputs, span, may_be_empty)
        return Predictions([answers[0][0] for answers in n_best], n_best)
    if task.kind == "token_classification":
        return Predictions(predicted_labels(examples, features, outputs))
    if task.kind == "regression":
        return Predictions([float(value) for value in outputs[:, 0]])
    if task.kind == "multiple_rows":
        margin = outputs[:, 1] - outputs[:, 0]
        if task.choose == "any":
            return Predictions([int(value > 0) for value in margin])
        return Predictions([max(rows, key=lambda row: margin[row]) for rows in questions(examples).values()])
    return Predictions([int(value) for value in outputs.argmax(axis=1)])


def questions(examples: Sequence[Example]) -> dict[tuple[int, ...], list[int]]:
    """Row numbers of each question, in the order of the rows."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(example.group, []).append(number)
    return groups


def score(task: Task, examples: Sequence[Example], values: Sequence[Any]) -> dict[str, float]:
    """The task's metrics of `Predictions.values` against the examples' labels."""
    if task.kind == "span":
        return metrics.score_texts(task.metrics, [example.answers for example in examples], values)
    if task.kind == "token_classification":
        return metrics.score_words(task.metrics, task.labels, [example.label for example in examples], values)
    if task.kind == "multiple_rows" and task.choose == "one":
        chosen = [examples[row] for row in values]
        texts = [name for name in task.metrics if name in _TEXT_METRICS]
        scores = metrics.score_texts(texts, [row.answers for row in chosen], [row.choice for row in chosen])
        right = metrics.accuracy(np.ones(len(chosen)), np.array([row.label for row in chosen]))
        return {name: scores.get(name, right) for name in task.metrics}
    labels, predicted = np.array([example.label for example in examples]), np.array(values)
    if task.kind == "regression":
        return metrics.score_numbers(task.metrics, labels, predicted)
    if task.kind == "multiple_rows":
        return metrics.score_rows(task.metrics, labels, predicted, [example.group for example in examples])
    return metrics.score_ids(task.metrics, labels, predicted)


def majority(task: Task, train: Sequence[Example], examples: Sequence[Example]) -> dict[str, float]:
    """Scores of saying the same of every row: the commonest training label, the mean score, the first choice, ""."""
    if task.kind == "span":
        values: list[Any] = [""] * len(examples)
    elif task.kind == "regression":
        values = [float(np.mean([example.label for example in train]))] * len(examples)
    elif task.kind == "multiple_rows" and task.choose == "one":
        values = [rows[0] for rows in questions(examples).values()]
    elif task.kind == "token_classification":
        counts = Counter(label for example in train if isinstance(example.label, tuple) for label in example.label)
        values = [[counts.most_common(1)[0][0]] * len(example.spans) for example in examples]
    else:
        values = [Counter(example.label for example in train).most_common(1)[0][0]] * len(examples)
    return score(task, examples, values)


def check_metric(task: Task, metric: str | None) -> str:
    """The metric that picks the best checkpoint. Raises `UserError` where the task has none of that name, and where
    one of its metrics is unknown."""
    known = metrics.known_metrics(task.kind)
    if unknown := [name for name in task.metrics if name not in known]:
        raise UserError(f"task '{task.name}' asks for a metric '{unknown[0]}'; there are {', '.join(known)}")
    if metric is not None and metric not in task.metrics:
        raise UserError(f"task '{task.name}' has no metric '{metric}'; it has {', '.join(task.metrics)}")
    return metric or task.select


def check_labels(data: TaskData, splits: Iterable[str]) -> None:
    """Raise `UserError` where rows of `splits`, to train on or to be scored, have no label."""
    for split in splits:
        if any(example.label is None for example in data.splits[split]):
            name = data.task.name
            raise UserError(f"split '{split}' of task '{name}' has rows without a label; give its labelled file")


def check_split(data: TaskData, split: str | None) -> str:
    """The dev split that the best checkpoint is picked on. Raises `UserError` where the task has none of that name."""
    if split is not None and split not in data.dev_splits:
        there = ", ".join(data.dev_splits)
        raise UserError(f"task '{data.task.name}' has no dev split '{split}'; it has {there}")
    return split or data.dev_splits[0]
