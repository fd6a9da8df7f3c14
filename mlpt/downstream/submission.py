"""Official submission files of GLUE (TSV) and SuperGLUE (jsonl), and a plain file of predictions for any task."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlpt.downstream.evaluate import Predictions, questions
from mlpt.tasks import Example, Task

_GLUE_FILES = {
    ("cola", "test"): "CoLA.tsv",
    ("sst2", "test"): "SST-2.tsv",
    ("mrpc", "test"): "MRPC.tsv",
    ("stsb", "test"): "STS-B.tsv",
    ("qqp", "test"): "QQP.tsv",
    ("mnli", "test_matched"): "MNLI-m.tsv",
    ("mnli", "test_mismatched"): "MNLI-mm.tsv",
    ("qnli", "test"): "QNLI.tsv",
    ("rte", "test"): "RTE.tsv",
    ("wnli", "test"): "WNLI.tsv",
    ("mnli", "ax"): "AX.tsv",
    ("ax", "test"): "AX.tsv",
}
_SUPERGLUE_FILES = {
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "copa_pair": "COPA",
    "multirc": "MultiRC",
    "record": "ReCoRD",
    "record_span": "ReCoRD",
    "superglue_rte": "RTE",
    "wic": "WiC",
    "wsc": "WSC",
    "axb": "AX-b",
    "axg": "AX-g",
}


def write_submission(
    folder: Path, task: Task, split: str, examples: Sequence[Example], predictions: Predictions
) -> Path | None:
    """The file that the benchmark's server takes, or None for a task that has no server."""
    if task.benchmark == "glue":
        path = folder / _GLUE_FILES[task.name, split]
        rows = (
            f"{example.index}\t{_glue(task, value)}"
            for example, value in zip(examples, predictions.values, strict=True)
        )
        return _write(path, ["index\tprediction", *rows])
    if task.benchmark == "superglue":
        # A diagnostic set is a split of the task whose model predicts it.
        path = folder / f"{_SUPERGLUE_FILES.get(split, _SUPERGLUE_FILES[task.name])}.jsonl"
        return _write(path, map(json.dumps, _superglue(task, examples, predictions.values)))
    return None


def write_predictions(path: Path, task: Task, examples: Sequence[Example], predictions: Predictions) -> Path:
    """One JSON object a row or question: official index, prediction by name, gold label or answers where known."""
    return _write(path, (json.dumps(row, ensure_ascii=False) for row in _plain(task, examples, predictions)))


def _glue(task: Task, value: Any) -> str:
    """Label names, and the scores of STS-B within 0 to 5 with 3 decimals."""
    return f"{min(5.0, max(0.0, value)):.3f}" if task.kind == "regression" else task.labels[value]


def _superglue(task: Task, examples: Sequence[Example], values: Sequence[Any]) -> Iterable[dict]:
    if task.name == "multirc":
        yield from _multirc(examples, values)
    elif task.name == "record":  # the answer's text by the query's id, one query a line
        yield from ({"idx": examples[row].group[-1], "label": examples[row].choice} for row in values)
    elif task.name == "record_span":
        yield from ({"idx": one.group[-1], "label": text} for one, text in zip(examples, values, strict=True))
    elif task.name == "copa":  # a row's index is its choice, 0 or 1
        yield from ({"idx": examples[row].group[0], "label": examples[row].index} for row in values)
    else:
        for example, value in zip(examples, values, strict=True):
            yield {"idx": example.index, "label": _superglue_label(task, value)}


def _superglue_label(task: Task, value: int) -> str | int:
    # The server reads BoolQ's and WiC's booleans in lower case, WSC's capitalised, COPA's as numbers.
    if task.name == "copa_pair":
        return value
    return task.labels[value].lower() if task.name in ("boolq", "wic") else task.labels[value]


def _multirc(examples: Sequence[Example], values: Sequence[int]) -> Iterable[dict]:
    passages: dict[int, list[dict]] = {}
    for (passage, question), rows in questions(examples).items():
        answers = [{"idx": examples[row].index, "label": values[row]} for row in rows]
        passages.setdefault(passage, []).append({"idx": question, "answers": answers})
    for passage, found in passages.items():
        yield {"idx": passage, "passage": {"questions": found}}


def _plain(task: Task, examples: Sequence[Example], predictions: Predictions) -> Iterable[dict]:
    if task.kind == "multiple_rows" and task.choose == "one":
        groups = questions(examples)
        for (group, rows), row in zip(groups.items(), predictions.values, strict=True):
            right = [examples[one].choice for one in rows if examples[one].label]
            yield {"question": list(group), "prediction": examples[row].choice, "label": right or None}
        return
    if task.kind == "token_classification":
        yield from (_sentence(task, *pair) for pair in zip(examples, predictions.values, strict=True))
        return
    for number, (example, value) in enumerate(zip(examples, predictions.values, strict=True)):
        named = task.kind in ("classification", "multiple_rows")
        line: dict[str, Any] = {"index": example.index, "prediction": task.labels[value] if named else value}
        if example.group:
            line["question"] = list(example.group)
        if task.kind == "span":
            line["label"] = list(example.answers)
            line["n_best"] = (predictions.n_best or [])[number]
        elif example.label is not None:
            line["label"] = task.labels[example.class_id] if named else example.label
        yield line


def _sentence(task: Task, example: Example, labels: Sequence[int]) -> dict[str, Any]:
    """The words with their predicted labels, null for a word that the model did not see, and the gold ones."""
    line: dict[str, Any] = {
        "index": example.index,
        "words": [example.first[start:end] for start, end in example.spans],
        "prediction": [task.labels[label] if label >= 0 else None for label in labels],
    }
    if isinstance(example.label, tuple):
        line["label"] = [task.labels[label] for label in example.label]
    return line


def _write(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
