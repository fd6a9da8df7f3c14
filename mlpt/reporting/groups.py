"""Several runs side by side: which differ in nothing but the seed, means over those, and differences seed by seed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from mlpt.reporting.columns import Column, running_mean
from mlpt.reporting.records import Record

_NOT_COMPARED = ("seed", "name", "run_dir", "blocks", "runtime", "report")
_GRID = 300  # places at which curves are compared
Axis = Literal["tokens", "seconds"]


@dataclass(frozen=True)
class SeedGroup:
    """Runs whose settings differ in the seed alone (and in where they run), with a label that tells groups apart."""

    label: str
    records: list[Record]

    def by_seed(self) -> dict[Any, Record]:
        """The first run of each seed."""
        found: dict[Any, Record] = {}
        for record in self.records:
            found.setdefault(record.seed, record)
        return found


@dataclass(frozen=True)
class Mean:
    """A mean curve with the standard deviation over `count` runs, at the same `xs` for all groups."""

    xs: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    count: int


@dataclass(frozen=True)
class Difference:
    """Differences (other minus base) of runs with equal seeds: their mean with its 95 % t interval."""

    label: str
    by_seed: Mapping[Any, float]
    mean: float
    low: float
    high: float


def grouped(records: Sequence[Record]) -> list[SeedGroup]:
    """The groups, in the order of their first runs."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(json.dumps(_compared(record), sort_keys=True, default=str), []).append(record)
    labels = _labels([_compared(members[0]) for members in found.values()])
    return [SeedGroup(label, members) for label, members in zip(labels, found.values(), strict=True)]


def _compared(record: Record) -> dict[str, Any]:
    return {key: value for key, value in _flat(record.config) if key.split(".")[0] not in _NOT_COMPARED}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _labels(configs: list[dict[str, Any]]) -> list[str]:
    """What is special about each: few keys that tell all apart, those first that decide which others there are (a rule,
    of whose settings some are its own), then those that all of them have."""
    if len(configs) == 1:
        return ["all runs"]
    keys = dict.fromkeys(key for config in configs for key in config)
    shown = {key: [_words(config.get(key, "–")) for config in configs] for key in keys}
    differing = [key for key in keys if len(set(shown[key])) > 1]
    missing = {key: sum(key not in config for config in configs) for key in keys}
    position = {key: at for at, key in enumerate(keys)}

    def rank(key: str) -> tuple[bool, int, int, int, int]:
        decides = not missing[key] and any(missing[one] and _section(one) == _section(key) for one in keys)
        named = decides and any(isinstance(config[key], str) for config in configs)
        return not named, missing[key], -len(set(shown[key])), key.count("."), position[key]

    ranked = sorted(differing, key=rank)
    chosen: list[str] = []
    told = [""] * len(configs)
    for key in ranked:
        more = [f"{one}\0{value}" for one, value in zip(told, shown[key], strict=True)]
        if len(set(more)) > len(set(told)):
            chosen, told = [*chosen, key], more
    leaves = [key.rpartition(".")[2] for key in chosen]
    names = [leaf if leaves.count(leaf) == 1 else key for leaf, key in zip(leaves, chosen, strict=True)]
    return [
        ", ".join(f"{name}={shown[key][at]}" for name, key in zip(names, chosen, strict=True))
        for at in range(len(configs))
    ]


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _words(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"…{text[-38:]}"


def places(record: Record, column: Column, axis: Axis) -> np.ndarray:
    """Where the values of a column lie, in tokens or in seconds of training."""
    return record.metrics.tokens_at(column.steps) if axis == "tokens" else record.metrics.seconds_at(column.steps)


def common_grid(records: Sequence[Record], name: str, axis: Axis) -> np.ndarray:
    """Places that all runs which have the column `name` have come to; empty where there is none."""
    spans = [places(record, record.metrics.columns[name], axis) for record in having(records, name)]
    if not spans:
        return np.empty(0)
    first, last = max(span[0] for span in spans), min(span[-1] for span in spans)
    count = min(_GRID, max(len(span) for span in spans))
    return np.linspace(first, last, count) if last > first else np.array([first]) if last == first else np.empty(0)


def having(records: Sequence[Record], name: str) -> list[Record]:
    """Those runs that have logged `name`."""
    return [record for record in records if name in record.metrics.columns]


def mean_curve(records: Sequence[Record], name: str, axis: Axis, grid: np.ndarray, smooth: bool) -> Mean | None:
    """Mean over runs of the column `name` on `grid`; None where no run has it."""
    rows = [on_grid(record, name, axis, grid, smooth) for record in having(records, name)]
    if not rows or not len(grid):
        return None
    table = np.stack(rows)
    spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(len(grid))
    return Mean(grid, table.mean(axis=0), spread, len(table))


def on_grid(record: Record, name: str, axis: Axis, grid: np.ndarray, smooth: bool) -> np.ndarray:
    """A column at the places of `grid`; `smooth`: its running mean, where the values themselves jump about."""
    column = record.metrics.columns[name]
    values = running_mean(column.values, max(3, len(column) // 50)) if smooth else column.values
    return np.interp(grid, places(record, column, axis), values)


def final_values(group: SeedGroup, name: str) -> dict[Any, float]:
    """The last value of the column `name` by seed."""
    return {
        seed: float(record.metrics.columns[name].values[-1])
        for seed, record in group.by_seed().items()
        if name in record.metrics.columns
    }


def difference(label: str, base: Mapping[Any, float], other: Mapping[Any, float]) -> Difference | None:
    """Of values by seed; None where no seed stands on both sides."""
    by_seed = {seed: other[seed] - base[seed] for seed in base if seed in other}
    if not by_seed:
        return None
    values = np.array(list(by_seed.values()))
    mean = float(values.mean())
    low = high = mean
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        low, high = mean - half, mean + half
    return Difference(label, by_seed, mean, low, high)
