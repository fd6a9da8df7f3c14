"""What fine-tuning found: a cell's result, the summary over seeds, the table for people and `results.json`."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from mlpt.downstream.place import Place
from mlpt.outputs import write_json

RESULTS = "results.json"
Scores = dict[str, dict[str, float]]  # split -> metric -> fraction


@dataclass(frozen=True)
class CellResult:
    """One finished cell. `best` is the evaluation with the best `metric` on `select_split`, `last` the final one.

    `best_step` and `steps` count optimiser steps; `stopped` says why there are fewer than planned, if so.
    `seconds` and `examples_per_second` (windows, of a span task) are of the whole run, evaluations included.
    rows          examples trained on; `windows` of a span task: what they were cut into.
    max_length    tokens of the longest row that ran; `doc_stride`: the least distance of two windows that ran.
    lost_answers  spans: split -> share of the answers that are whole in no window.
    masks         the masks that were in force.
    """

    task: str
    learning_rate: float
    seed: int
    metric: str
    best: Scores
    best_step: int
    last: Scores
    steps: int
    majority: Scores
    rows: int
    seconds: float
    examples_per_second: float
    folder: str
    stopped: str = ""
    select_split: str = ""
    windows: int | None = None
    max_length: int | None = None
    doc_stride: int | None = None
    lost_answers: dict[str, float] = field(default_factory=dict)
    masks: str | None = None
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "CellResult":
        """The inverse of `to_json`."""
        return cls(**values)


@dataclass(frozen=True)
class Line:
    """One line of the table: a metric of a split over the seeds of the learning rate that was picked.

    `spread` is the sample standard deviation (n - 1), None for one seed.
    """

    task: str
    split: str
    metric: str
    learning_rate: float
    which: str
    seeds: int
    median: float
    mean: float
    spread: float | None
    lowest: float
    highest: float
    majority: float


def best_rate(results: Sequence[CellResult]) -> float:
    """The learning rate with the best median of the selecting metric over its seeds (the lowest of equals).

    It is picked on the dev split that is also reported, as the field does; a test set is the judge of that.
    """
    rates = sorted({result.learning_rate for result in results})
    return max(rates, key=lambda rate: statistics.median(_selected(r) for r in results if r.learning_rate == rate))


def _selected(result: CellResult) -> float:
    return result.best[result.select_split or next(iter(result.best))][result.metric]


def summarise(results: Iterable[CellResult]) -> list[Line]:
    """Every task, split and metric, of best and last checkpoints, in the order of the tasks."""
    tasks: dict[str, list[CellResult]] = {}
    for result in results:
        tasks.setdefault(result.task, []).append(result)
    lines = []
    for task, of_task in tasks.items():
        rate = best_rate(of_task)
        chosen = [result for result in of_task if result.learning_rate == rate]
        for which in ("best", "last"):
            for split, metrics in getattr(chosen[0], which).items():
                for metric in metrics:
                    values = [getattr(result, which)[split][metric] for result in chosen]
                    lines.append(_line(task, split, metric, rate, which, values, chosen[0].majority[split][metric]))
    return lines


def _line(task: str, split: str, metric: str, rate: float, which: str, values: list[float], majority: float) -> Line:
    return Line(
        task,
        split,
        metric,
        rate,
        which,
        len(values),
        statistics.median(values),
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        min(values),
        max(values),
        majority,
    )


def table(lines: Sequence[Line]) -> str:
    """The lines as a plain text table, scores x 100; best and last side by side."""
    last = {(line.task, line.split, line.metric): line for line in lines if line.which == "last"}
    header = ("task", "split", "metric", "lr", "seeds", "median", "mean", "spread", "last median", "majority")
    rows: list[tuple[str, ...]] = [header]
    for line in lines:
        if line.which == "best":
            after = last[line.task, line.split, line.metric].median
            spread = "-" if line.spread is None else f"{100 * line.spread:.2f}"
            numbers = [f"{100 * value:.2f}" for value in (line.median, line.mean)]
            ends = [f"{100 * value:.2f}" for value in (after, line.majority)]
            name = (line.task, line.split, line.metric, f"{line.learning_rate:g}", str(line.seeds))
            rows.append((*name, *numbers, spread, *ends))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def write_results(place: Place, results: Sequence[CellResult]) -> None:
    """`results.json`: the summary and every cell, replaced in one step."""
    document = {
        "summary": [asdict(line) for line in summarise(results)],
        "cells": [result.to_json() for result in results],
    }
    folder = place.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, document)
    place.send(RESULTS)
