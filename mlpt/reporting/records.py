"""A run's folder or URI as plain values: what the report, the list of runs and `mlpt watch` look at.

Nothing here knows a key of the configuration or of the metrics that it can do without: runs of other versions, runs
that are under way and runs that broke off are read as far as they go.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpt.errors import UserError, reason
from mlpt.outputs import absolute
from mlpt.reporting.columns import Metrics, read_metrics
from mlpt.reporting.history import HISTORY, State, read_history, state_of
from mlpt.reporting.logs import LogEvent, read_log
from mlpt.reporting.masks import Masks, read_masks
from mlpt.reporting.samples import FOLDER as SAMPLES
from mlpt.reporting.samples import Sample, read_sample
from mlpt.storage.store import Store, is_uri
from mlpt.yaml_text import parse_yaml

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"


class FolderReader:
    """A folder of this machine or one behind a URI, read by name."""

    def __init__(self, place: str):
        self.name = place.rstrip("/") if is_uri(place) else str(absolute(place))
        self.folder = None if is_uri(place) else Path(self.name)
        self._store = Store(self.name) if is_uri(place) else None

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none."""
        if self._store is not None:
            return self._store.read(name)
        assert self.folder is not None
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"cannot read {self.folder / name}: {reason(error)}") from error

    def read_json(self, name: str) -> dict[str, Any]:
        """A file's object; empty where there is none, or a damaged one."""
        try:
            values = json.loads(self.read(name) or b"{}")
        except ValueError:
            return {}
        return values if isinstance(values, dict) else {}

    def names(self, folder: str) -> list[str]:
        """Names directly in `folder`, sorted."""
        if self._store is not None:
            return self._store.names(folder)
        assert self.folder is not None
        path = self.folder / folder
        return sorted(one.name for one in path.iterdir()) if path.is_dir() else []


@dataclass(frozen=True)
class Record:
    """One run as it is now.

    place     its folder or URI. name: the last part of it, which may not be unique.
    masks     those that it has left; what changed between them only if asked for.
    events    what its logs say, oldest first; empty unless asked for.
    samples   the texts that it kept, by step; empty unless asked for.
    """

    place: str
    name: str
    state: State
    config: Mapping[str, Any]
    metrics: Metrics
    summary: Mapping[str, Any]
    starts: list[dict[str, Any]]
    first_mixture: Mapping[str, float]
    masks: Masks = field(default_factory=Masks)
    events: list[LogEvent] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def steps(self) -> int:
        return self.metrics.last_step()

    @property
    def tokens(self) -> int:
        """Trained on so far."""
        column = self.metrics.columns.get("tokens")
        return int(column.values[-1]) if column is not None else int(self.summary.get("tokens") or 0)

    @property
    def seconds(self) -> float:
        """Of training so far."""
        column = self.metrics.columns.get("tokens")
        logged = float(self.metrics.seconds_at(column.steps[-1:])[0]) if column is not None else 0.0
        return float(self.summary.get("seconds") or logged) if self.state == "finished" else logged

    @property
    def mixture(self) -> dict[str, float]:
        """The newest one."""
        return self.newest("mixture") or dict(self.first_mixture)

    def newest(self, group: str) -> dict[str, float]:
        """The last values of the columns `group/NAME`."""
        return {name: float(column.values[-1]) for name, column in self.metrics.under(group).items()}


def is_run(place: FolderReader) -> bool:
    """True if there is a run, however far it came."""
    return place.read(CONFIG) is not None


def read_run(name: str, in_full: bool = False) -> Record:
    """The run in a folder or at a URI; `in_full`: with its logs and texts.

    Raises `UserError` in one line where there is none.
    """
    place = FolderReader(name)
    content = place.read(CONFIG)
    if content is None:
        there = "" if place.folder is None or place.folder.exists() else " (there is no such folder)"
        raise UserError(f"{name} holds no run: it has no {CONFIG}{there}; name the folder or URI of a run")
    starts = read_history(place.read(HISTORY))
    metrics = read_metrics(place.read(METRICS) or b"")
    summary = place.read_json("summary.json")
    ended = bool(summary) or bool(metrics.under("held_out"))
    return Record(
        place=place.name,
        name=place.name.rstrip("/").rpartition("/")[2],
        state=state_of(place.folder, starts, ended),
        config=_config(content),
        metrics=metrics,
        summary=summary,
        starts=starts,
        first_mixture=place.read_json("policies/policy_000000.json").get("mixture") or {},
        masks=read_masks(place, in_full),
        events=list(_events(place)) if in_full else [],
        samples=list(_samples(place)) if in_full else [],
    )


def _config(content: bytes) -> dict[str, Any]:
    try:
        values = parse_yaml(content, CONFIG)
    except UserError:
        return {}
    return values if isinstance(values, dict) else {}


def _events(place: FolderReader) -> Iterator[LogEvent]:
    found = [event for name in place.names("logs") for event in read_log(name, place.read(f"logs/{name}") or b"")]
    yield from sorted(found, key=lambda event: event.at)


def _samples(place: FolderReader) -> Iterator[Sample]:
    found = [read_sample(place.read(f"{SAMPLES}/{name}")) for name in place.names(SAMPLES) if name.endswith(".json")]
    yield from sorted((one for one in found if one is not None), key=lambda one: one.step)


def fingerprint(places: list[str]) -> str:
    """Changes whenever one of the runs has written figures; for whoever waits for news."""
    digest = hashlib.blake2b(digest_size=8)
    for name in places:
        place = FolderReader(name)
        for file in (METRICS, HISTORY, "summary.json"):
            digest.update(_mark(place, file))
    return digest.hexdigest()


def _mark(place: FolderReader, file: str) -> bytes:
    if place.folder is None:
        return place.read(file) or b""
    try:
        said = (place.folder / file).stat()
    except OSError:
        return b"-"
    return f"{said.st_size} {said.st_mtime_ns};".encode()
