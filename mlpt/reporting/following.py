"""`mlpt watch`: the display of `mlpt pretrain` for any run, read from what it writes, until the run ends."""

import json
import time
from collections.abc import Iterator
from typing import Any

from mlpt.reporting.display import Display
from mlpt.reporting.html.parts import duration, number
from mlpt.reporting.records import METRICS, FolderReader, read_run
from mlpt.reporting.run_list import total_steps

_POLL_S = {"folder": 0.5, "uri": 5.0}
_DEFAULTS: dict[str, Any] = {"loss": {}, "mixture": {}, "meta_stall_seconds": 0.0, "tokens_per_second": 0.0}


def follow(name: str, display: Display) -> None:
    """Show the run `name` as it goes on; returns when it has ended. Raises `UserError` where there is no run."""
    place = FolderReader(name)
    record = read_run(name)
    lines = _Lines(place)
    wait = _POLL_S["uri" if place.folder is None else "folder"]
    if not record.metrics.columns and record.state == "running":
        display.doing("waiting for the first figures")
    while True:
        for event in _events(lines.new(), total_steps(record)):
            display.handle(event)
        if record.state != "running":
            break
        time.sleep(wait)
        record = read_run(name)  # before the lines, so that none is missed
    for text in _end(name):
        display.say(text)


class _Lines:
    """The whole lines that have come to the metrics of a run since they were last asked for."""

    def __init__(self, place: FolderReader):
        self._place = place
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """A run that was begun again, or went back to a checkpoint, is read from its beginning."""
        content = self._place.read(METRICS) or b""
        if len(content) < self._read:
            self._read = 0
        whole = content[self._read : content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                yield values


def _events(lines: Iterator[dict[str, Any]], steps: int | None) -> Iterator[dict[str, Any]]:
    """As the loop tells them. Of many lines at once the last is shown."""
    newest = None
    for values in lines:
        if "policy" in values:
            yield {"event": "policy", **values}
        if "loss" in values:
            newest = {**_DEFAULTS, **values, "event": "step", "steps": max(steps or 0, values["step"])}
    if newest is not None:
        yield newest


def _end(name: str) -> Iterator[str]:
    record = read_run(name)
    yield (
        f"{record.name} is {record.state}: {number(record.steps)} steps, {number(record.tokens)} tokens, "
        f"{duration(record.seconds)} of training"
    )
    for loss, value in record.newest("held_out").items():
        yield f"held-out {loss}: {value:.4f} nats"
    error = record.starts[-1].get("error") if record.starts else None
    if error:
        yield f"it failed: {error}"
