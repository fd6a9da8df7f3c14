"""What a multi-task run found, by three ways of choosing: one best checkpoint, the last one, each metric's own best."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

Scores = dict[str, dict[str, dict[str, float]]]  # task -> split -> metric -> fraction


class RunningBest:
    """Each metric's greatest value over evaluations, on its own: no single checkpoint need have them all.

    That is what the published code reports (its losses keep the last value); it flatters, and stands beside `best`.
    """

    def __init__(self) -> None:
        self.scores: Scores = {}

    def update(self, scores: Scores) -> None:
        """Take one evaluation in."""
        for task, splits in scores.items():
            for split, metrics in splits.items():
                kept = self.scores.setdefault(task, {}).setdefault(split, {})
                for name, value in metrics.items():
                    kept[name] = value if name == "loss" else max(value, kept.get(name, value))


@dataclass(frozen=True)
class MultitaskResult:
    """`best` is the evaluation with the greatest mean of the tasks' selecting metrics (first dev split of each).

    rows        task -> [rows trained on, rows in its training split]; windows, of a span task.
    parameters  `total` and `trainable`.
    max_length  most tokens of a row that ran.
    """

    seed: int
    sampler: str
    encoder: str
    best: Scores
    best_step: int
    last: Scores
    running_best: Scores
    majority: Scores
    selects: dict[str, str]
    steps: int
    rows: dict[str, list[int]]
    parameters: dict[str, int]
    seconds: float
    steps_per_second: float
    max_length: int | None = None
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: dict) -> "MultitaskResult":
        """Of what `results.json` holds."""
        return cls(**values)


def table(result: MultitaskResult) -> str:
    """A line for every task and dev split, for people: its selecting metric x 100, by each way of choosing."""
    rows: list[tuple[str, ...]] = [
        ("task", "split", "metric", "best", "last", "own maximum", "majority", "rows trained")
    ]
    for task, metric in result.selects.items():
        for split in result.best[task]:
            scores = (result.best, result.last, result.running_best, result.majority)
            cells = [f"{100 * one[task][split][metric]:.2f}" for one in scores]
            rows.append((task, split, metric, *cells, str(result.rows[task][0])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def selected(scores: Scores, selects: Mapping[str, str]) -> dict[str, float]:
    """Task -> the metric that `selects` names for it, on the first dev split."""
    return {task: next(iter(scores[task].values()))[metric] for task, metric in selects.items()}


def mean_selected(scores: Scores, selects: Mapping[str, str]) -> float:
    """Mean of `selected` over the tasks."""
    return statistics.fmean(selected(scores, selects).values())
