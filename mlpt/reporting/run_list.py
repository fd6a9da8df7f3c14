"""`mlpt runs`: the runs below a folder or URI, with what each has come to, as plain values and as a table."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mlpt.errors import UserError
from mlpt.reporting.html.parts import duration, number
from mlpt.reporting.records import CONFIG, FolderReader, Record, is_run, read_run
from mlpt.reporting.text import printable

_DEEPEST = 3  # folders below the one that is named; the trials of a sweep lie that deep
_LOSSES = ("held_out", "dev", "loss")  # the first that a run has is shown


def find_runs(name: str) -> list[str]:
    """The runs at or below `name`. Raises `UserError` where there is none."""
    place = FolderReader(name)
    if place.folder is not None and not place.folder.is_dir():
        raise UserError(f"there is no folder {name}; name the folder that your runs are in, as in `mlpt runs runs`")
    if is_run(place):
        return [place.name]
    if place.folder is None:
        found = [f"{place.name}/{one}" for one in place.names("") if is_run(FolderReader(f"{place.name}/{one}"))]
    else:
        found = [str(one) for one in _below(place.folder, _DEEPEST)]
    if not found:
        raise UserError(f"{name} holds no runs: neither it nor a folder in it has a {CONFIG}")
    return found


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inside = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError:  # a folder of somebody else
        return
    for one in inside:
        if (one / CONFIG).is_file():
            yield one
        elif depth > 1:
            yield from _below(one, depth - 1)


def described(names: Sequence[str]) -> list[dict[str, Any]]:
    """What `mlpt runs --json` prints: an object for each run; times in seconds, losses in nats."""
    return [_described(read_run(name)) for name in names]


def _described(record: Record) -> dict[str, Any]:
    kind = next((kind for kind in _LOSSES if record.newest(kind)), None)
    return {
        "run": record.place,
        "name": record.config.get("name"),
        "seed": record.seed,
        "state": record.state,
        "step": record.steps,
        "steps": total_steps(record),
        "tokens": record.tokens,
        "seconds": round(record.seconds, 3),
        "started": record.starts[0].get("at") if record.starts else None,
        "losses": {} if kind is None else record.newest(kind),
        "losses_are": kind,
        "mixture": record.mixture,
        "error": record.starts[-1].get("error") if record.starts else None,
    }


def total_steps(record: Record) -> int | None:
    """The steps that the run is to have, as far as its settings and its lines say; None where they do not."""
    train = record.config.get("train")
    if not isinstance(train, dict):
        return None
    tokens = record.metrics.columns.get("tokens")
    if train.get("tokens") is None:
        return train.get("steps")
    if tokens is None or not tokens.values[-1]:
        return None
    return -int(-train["tokens"] // (tokens.values[-1] / tokens.steps[-1]))


def table_of(runs: Sequence[dict[str, Any]], below: str) -> Table:
    """The same for a terminal; runs by their path below the folder `below`."""
    table = Table(box=None, pad_edge=False)
    headings = ("run", "state", "step", "tokens", "time", "losses (nats)", "mixture")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("step", "tokens", "time") else "left")
    for run in runs:
        step = number(run["step"]) if run["steps"] is None else f"{number(run['step'])}/{number(run['steps'])}"
        losses = _pairs(run["losses"])
        kind = {"held_out": "test", "dev": "dev", "loss": "train"}.get(run["losses_are"] or "", "")
        cells = (_short(run["run"], below), run["state"], step, number(run["tokens"]), duration(run["seconds"]))
        told = (f"{kind}: {losses}" if losses else "", _pairs(run["mixture"]))
        table.add_row(*(Text(printable(str(cell))) for cell in (*cells, *told)))
    return table


def _short(run: str, below: str) -> str:
    base = FolderReader(below).name
    return run.removeprefix(f"{base}/") if run != base else run.rpartition("/")[2]


def _pairs(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in values.items())
