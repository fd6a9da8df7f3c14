"""The figures of a run as columns: read from `metrics.jsonl`, put over tokens or time, thinned without losing extremes.

A line of that file is any JSON object with a `step`; every number in it, however deep, becomes a column `a/b/c`. A
slash in a name becomes a division slash, which looks alike.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

_BLOCK_BYTES = 1 << 24  # a line must fit into one


@dataclass(frozen=True)
class Column:
    """One figure over the run: `steps` and `values`, float64, (n,), no NaN or infinity among the values.

    missing  how often it was logged without a finite value.
    """

    steps: np.ndarray
    values: np.ndarray
    missing: int = 0

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Metrics:
    """All columns of a run by name, and how many lines could not be read (a torn last one is not counted)."""

    columns: Mapping[str, Column] = field(default_factory=dict)
    damaged: int = 0

    def under(self, prefix: str) -> dict[str, Column]:
        """The columns `prefix/NAME` by NAME, in the order of the file; deeper ones are left out."""
        start = f"{prefix}/"
        found = {name.removeprefix(start): column for name, column in self.columns.items() if name.startswith(start)}
        return {name: column for name, column in found.items() if "/" not in name}

    def first(self, prefix: str) -> dict[str, float]:
        """The first values of the columns `prefix/NAME`."""
        return {name: float(column.values[0]) for name, column in self.under(prefix).items()}

    def tokens_at(self, steps: np.ndarray) -> np.ndarray:
        """Tokens trained on after `steps`; the steps themselves where no line says."""
        return self._at(steps, self.columns.get("tokens"))

    def seconds_at(self, steps: np.ndarray) -> np.ndarray:
        """Seconds of training after `steps`, from tokens and tokens/s of every line; zeros where no line says."""
        tokens, rate = self.columns.get("tokens"), self.columns.get("tokens_per_second")
        if tokens is None or rate is None or len(tokens) != len(rate):
            return np.zeros(len(steps))
        seconds = np.cumsum(np.diff(tokens.values, prepend=0.0) / np.maximum(rate.values, 1e-9))
        return self._at(steps, Column(tokens.steps, seconds))

    def last_step(self) -> int:
        """The newest step that any line names."""
        return int(max((column.steps[-1] for column in self.columns.values() if len(column)), default=0))

    @staticmethod
    def _at(steps: np.ndarray, known: Column | None) -> np.ndarray:
        if known is None or not len(known):
            return np.asarray(steps, dtype=float)
        xs, ys = np.concatenate([[0.0], known.steps]), np.concatenate([[0.0], known.values])
        pace = ys[-1] / max(xs[-1], 1.0)  # beyond the last line: as until then
        return np.interp(steps, xs, ys) + np.maximum(np.asarray(steps) - xs[-1], 0.0) * pace


def read_metrics(content: bytes) -> Metrics:
    """Columns of the lines in `content`; what follows the last newline is a line being written, and is left out."""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        return Metrics()
    try:
        return _of_table(whole)
    except (pa.ArrowException, KeyError):  # NaN, a damaged line, one key with values of several types
        return _line_by_line(whole)


def _of_table(content: bytes) -> Metrics:
    options = pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES)
    table = pyarrow.json.read_json(pa.BufferReader(content), read_options=options)
    steps = _numbers(table["step"])
    columns = {}
    for top in table.column_names:
        for name, values in _leaves(_plain(top), table[top]):
            kind = values.type
            if name != "step" and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                columns[name] = _column(steps, _numbers(values))
    return Metrics({name: column for name, column in columns.items() if len(column)})


def _leaves(name: str, values: pa.ChunkedArray) -> Iterator[tuple[str, pa.ChunkedArray]]:
    if not pa.types.is_struct(values.type):
        yield name, values
        return
    for at in range(values.type.num_fields):
        yield from _leaves(f"{name}/{_plain(values.type.field(at).name)}", pc.struct_field(values, [at]))


def _numbers(values: pa.ChunkedArray) -> np.ndarray:
    return values.cast(pa.float64(), safe=False).to_numpy()


def _line_by_line(content: bytes) -> Metrics:
    found: dict[str, tuple[list[float], list[float]]] = {}
    damaged = 0
    for line in content.splitlines():
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            step = float(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged += 1
            continue
        for name, number in flat(values):
            steps, numbers = found.setdefault(name, ([], []))
            steps.append(step)
            numbers.append(number)
    columns = {name: _column(np.array(steps), np.array(numbers)) for name, (steps, numbers) in found.items()}
    return Metrics({name: column for name, column in columns.items() if len(column)}, damaged)


def _column(steps: np.ndarray, values: np.ndarray) -> Column:
    """Rows with a finite value, by step; of a step that stands there twice the last."""
    sound = np.isfinite(values) & np.isfinite(steps)
    xs, ys, missing = steps[sound], values[sound], int(np.isinf(values).sum())
    if np.any(np.diff(xs) <= 0):
        order = np.argsort(xs, kind="stable")
        xs, ys = xs[order], ys[order]
        last = np.append(np.diff(xs) > 0, True)
        xs, ys = xs[last], ys[last]
    return Column(xs, ys, missing)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Every number in nested mappings as `a/b`, NaN and infinity included."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{_plain(name)}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{prefix}{_plain(name)}", float(value)))
    return found


def _plain(name: str) -> str:
    return name.replace("/", "\u2215")


def kept_points(values: np.ndarray, most: int) -> np.ndarray:
    """Indices, ascending, of about `most` of the (n,) values: the least and the largest of each of `most` / 2 equal
    stretches, and both ends. What stands out stays, whatever is left out."""
    n = len(values)
    if n <= most:
        return np.arange(n)
    edges = np.linspace(0, n, max(1, most // 2) + 1).astype(int)
    starts = np.unique(edges[:-1])
    sizes = np.diff(np.append(starts, n))
    owner = np.repeat(np.arange(len(starts)), sizes)
    order = np.lexsort((values, owner))  # by stretch, then by value
    lowest, highest = order[starts], order[starts + sizes - 1]
    return np.unique(np.concatenate([[0, n - 1], lowest, highest]))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """(n,) means over up to `window` values around each."""
    n, half = len(values), max(0, window // 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.maximum(np.arange(n) - half, 0), np.minimum(np.arange(n) + half + 1, n)
    return (sums[high] - sums[low]) / (high - low)


def running_spread(values: np.ndarray, window: int) -> np.ndarray:
    """(n,) standard deviations over up to `window` values around each."""
    centre = float(np.mean(values)) if len(values) else 0.0  # for precision where the mean is far from 0
    shifted = values - centre
    return np.sqrt(np.maximum(running_mean(shifted**2, window) - running_mean(shifted, window) ** 2, 0.0))
