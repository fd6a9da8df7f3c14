"""A sweep's folder as plain values: what was searched, and every trial with its parameters and metrics."""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet

from mlpt.errors import UserError
from mlpt.reporting.records import FolderReader, Record, read_run
from mlpt.yaml_text import parse_yaml

SWEEP = "sweep.yaml"
TRIALS = "trials.parquet"
_PARAMETER = "parameter/"
_ABOUT = ("trial_id", "status", "error", "seed", "tokens", "seconds", "run_dir")
_MODES = ("min", "max")


@dataclass(frozen=True)
class TrialRow:
    """One trial: its point of the space and what it measured; NaN and missing metrics are left out."""

    name: str
    status: str
    seed: Any
    tokens: int
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Sweep:
    """goals: metric -> min or max, the first one first. asked: the words of the command."""

    place: str
    name: str
    space: str
    asked: Sequence[str]
    goals: Mapping[str, str]
    trials: list[TrialRow]
    is_finished: bool


def is_sweep(place: FolderReader) -> bool:
    """True if the folder is one of `mlpt tune`."""
    return place.read(SWEEP) is not None


def read_sweep(name: str) -> Sweep:
    """The sweep in a folder, finished or under way. Raises `UserError` where there is none."""
    place = FolderReader(name)
    try:
        said = parse_yaml(place.read(SWEEP) or b"", SWEEP)
    except UserError:
        said = None
    if not isinstance(said, dict):
        raise UserError(f"{place.name}/{SWEEP} is damaged and does not say which sweep this is")
    content = place.read(TRIALS)
    trials = list(_of_runs(place)) if content is None else list(_of_table(content))
    goals = said.get("metrics")
    if not isinstance(goals, dict) or any(mode not in _MODES for mode in goals.values()):
        measured = dict.fromkeys(metric for trial in trials for metric in trial.metrics)
        goals = {"dev/mean" if "dev/mean" in measured else next(iter(measured), "dev/mean"): "min"}
    words = [str(word) for word in said.get("words") or []]
    space = str(said.get("space", ""))
    return Sweep(place.name, place.name.rpartition("/")[2], space, words, goals, trials, content is not None)


def _of_table(content: bytes) -> Iterator[TrialRow]:
    for row in pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist():
        parameters = {key.removeprefix(_PARAMETER): value for key, value in row.items() if key.startswith(_PARAMETER)}
        numbers = {key: value for key, value in row.items() if key not in _ABOUT and not key.startswith(_PARAMETER)}
        metrics = {key: float(value) for key, value in numbers.items() if value is not None and math.isfinite(value)}
        yield TrialRow(row["trial_id"], row["status"], row["seed"], row["tokens"] or 0, parameters, metrics)


def _of_runs(place: FolderReader) -> Iterator[TrialRow]:
    """Of a sweep under way: its runs, with those settings that differ between them."""
    records = [read_run(f"{place.name}/trials/{name}") for name in place.names("trials") if _is_run(place, name)]
    flat = [dict(_leaves(record.config)) for record in records]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in ("seed", "run_dir")]
    varying = [key for key in keys if len({json.dumps(one.get(key), default=str) for one in flat}) > 1]
    for record, one in zip(records, flat, strict=True):
        parameters = {key: one.get(key) for key in varying}
        yield TrialRow(record.name, record.state, record.seed, record.tokens, parameters, _measured(record))


def _is_run(place: FolderReader, name: str) -> bool:
    return place.read(f"trials/{name}/config.yaml") is not None


def _measured(record: Record) -> dict[str, float]:
    dev = record.newest("dev")
    mean = {"dev/mean": sum(dev.values()) / len(dev)} if dev else {}
    return mean | {f"dev/{name}": loss for name, loss in dev.items()}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def front(trials: Sequence[TrialRow], goals: Mapping[str, str]) -> list[TrialRow]:
    """The trials that no other one beats in one of the `goals` without losing in another, by the first goal."""
    able = [trial for trial in trials if all(goal in trial.metrics for goal in goals)]

    def costs(trial: TrialRow) -> tuple[float, ...]:
        return tuple(trial.metrics[goal] * (1 if mode == "min" else -1) for goal, mode in goals.items())

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True)) for theirs in map(costs, able)
        )

    return sorted((trial for trial in able if not beaten(costs(trial))), key=costs)
