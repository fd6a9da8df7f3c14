"""What suites found, for people: tables of scores with their intervals, and the same scores over several models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlpt.downstream.intervals import of_models
from mlpt.downstream.suite import Suite

Values = Mapping[str, Any]


def over_models(measured: Sequence[Values]) -> list[dict[str, Any]]:
    """Each score's mean over models (one recipe, several seeds), the spread (standard deviation, n - 1) and Student's
    95 % interval of the mean; nothing for one model. A score that not every model has is left out."""
    if len(measured) < 2:
        return []
    every = [{_key(line): line for line in one["lines"]} for one in measured]
    summary = []
    for key, line in every[0].items():
        if all(key in one for one in every):
            values = [one[key]["value"] for one in every]
            estimate = of_models(values)
            named = {name: line[name] for name in ("level", "name", "metric", "baseline")}
            spread = float(np.std(values, ddof=1))
            summary.append(
                named | {"mean": estimate.value, "spread": spread, "low": estimate.low, "high": estimate.high}
            )
    return summary


def report(name: str, suite: Suite, result: Values) -> str:
    """A suite's result as text: settings, a table (scores x 100), and notes about what was left out."""
    models = result["models"]
    settings = ", ".join(f"{key}={value}" for key, value in result["settings"].items() if value is not None)
    seconds = sum(one["seconds"] for one in models.values())
    head = f"{name} ({seconds:.0f} s; {settings})"
    body = _over_models(suite, result) if len(models) > 1 else _one_model(suite, next(iter(models.values())))
    notes = [
        f"  {note}" if len(models) == 1 else f"  {model}: {note}"
        for model, one in models.items()
        for note in one["notes"]
    ]
    masked = [f"  {model}: under the masks {one['masks']}" for model, one in models.items() if one["masks"]]
    return "\n".join([head, body, *masked, *notes])


def _one_model(suite: Suite, result: Values) -> str:
    rows: list[tuple[str, ...]] = [("", "name", "metric", "score", "95 % from", "to", "count", "baseline")]
    for line in result["lines"]:
        if line["level"] not in suite.details:
            scores = [_hundred(line[key]) for key in ("value", "low", "high")]
            rows.append((*_key(line), *scores, f"{line['count']:,}", _hundred(line["baseline"])))
    return _columns(rows)


def _over_models(suite: Suite, result: Values) -> str:
    models = list(result["models"])
    values = [{_key(line): line["value"] for line in result["models"][model]["lines"]} for model in models]
    numbers = [f"({number})" for number in range(1, len(models) + 1)]
    rows = [("", "name", "metric", "mean", "spread", "95 % from", "to", "baseline", *numbers)]
    for line in result["over_models"]:
        if line["level"] not in suite.details:
            scores = [_hundred(line[key]) for key in ("mean", "spread", "low", "high", "baseline")]
            rows.append((*_key(line), *scores, *(_hundred(one[_key(line)]) for one in values)))
    legend = [f"  {number} {model}" for number, model in zip(numbers, models, strict=True)]
    return "\n".join([_columns(rows), *legend])


def _columns(rows: Sequence[Sequence[str]], left: int = 3) -> str:
    """Plain text columns, the first `left` of them aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _hundred(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _key(line: Values) -> tuple[str, str, str]:
    return line["level"], line["name"], line["metric"]
