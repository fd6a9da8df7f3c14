"""Figures of a run as Arrow tables, for whoever analyses them in Python."""

import json
import re

import numpy as np
import pyarrow as pa

from mlpt.errors import UserError
from mlpt.reporting.columns import Metrics
from mlpt.reporting.records import FolderReader

_VERSION = re.compile(r"policy_(\d+)\.json")


def metrics_table(metrics: Metrics) -> pa.Table:
    """`step` int64 ascending, each once, and every figure as float64, null where it was not logged at that step."""
    known = [column.steps for column in metrics.columns.values()]
    steps = np.unique(np.concatenate(known)) if known else np.empty(0)
    columns: dict[str, pa.Array] = {"step": pa.array(steps.astype(np.int64))}
    for name, column in metrics.columns.items():
        values = np.full(len(steps), np.nan)
        values[np.searchsorted(steps, column.steps)] = column.values
        columns[name] = pa.array(values, from_pandas=True)
    return pa.table(columns)


def mixtures_table(place: FolderReader) -> pa.Table:
    """`version` and `step` int64, and a float64 column of probabilities for each arm, by version."""
    rows = []
    for name in place.names("policies"):
        if _VERSION.fullmatch(name) is not None:
            said = _read(place, f"policies/{name}")
            rows.append((said["version"], said["adopted_at_step"], said.get("mixture", {})))
    rows.sort(key=lambda row: row[0])
    arms = dict.fromkeys(arm for _, _, mixture in rows for arm in mixture)
    columns = {
        "version": pa.array([version for version, _, _ in rows], pa.int64()),
        "step": pa.array([step for _, step, _ in rows], pa.int64()),
    }
    return pa.table(
        columns | {arm: pa.array([mixture.get(arm) for _, _, mixture in rows], pa.float64()) for arm in arms}
    )


def _read(place: FolderReader, file: str) -> dict:
    try:
        said = json.loads(place.read(file) or b"")
        return {"version": int(said["version"]), "adopted_at_step": int(said["adopted_at_step"]), **said}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place.name}/{file} is damaged; take it away to see the others") from error
