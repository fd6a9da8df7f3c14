"""What the plain logs of a run tell: starts of ranks and of the meta-learner, adoptions, checkpoints, warnings."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (INFO|WARNING|ERROR) [\w.]+: (.*)")
_STEP = b'"event": "step"'  # the bulk of a log; the metrics have them too
_KINDS: dict[str, "Kind"] = {"policy": "policy", "checkpoint": "checkpoint", "resumed": "start", "warning": "warning"}

Kind = Literal["start", "policy", "checkpoint", "warning", "error", "end"]


@dataclass(frozen=True)
class LogEvent:
    """Something that happened at a time (local time of the machine that wrote it) to `who`, a rank or the learner."""

    at: datetime
    who: str
    kind: Kind
    text: str


def read_log(name: str, content: bytes) -> Iterator[LogEvent]:
    """The events in one log file called `name`; lines that are none, such as tracebacks, are passed over."""
    who = name.removesuffix(".log").replace("_", " ")
    for raw in content.splitlines():
        if _STEP in raw:
            continue
        found = _LINE.match(raw.decode(errors="replace"))
        if found is None:
            continue
        told = _told(found[3], found[4])
        if told is not None:
            at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(microsecond=1000 * int(found[2]))
            yield LogEvent(at, who, *told)


def _told(level: str, text: str) -> tuple[Kind, str] | None:
    if level != "INFO":
        return ("error" if level == "ERROR" else "warning", text)
    if text.startswith("{"):
        return _of_event(text)
    if re.match(r"rank \d+ of \d+ on |meta-learner ready", text):
        return "start", text
    answered = re.match(r"step \d+: policy \d+", text)
    return ("policy", answered[0]) if answered else None


def _of_event(text: str) -> tuple[Kind, str] | None:
    try:
        event = json.loads(text)
        kind = _KINDS.get(event["event"])
    except (ValueError, KeyError, TypeError):
        return None
    if kind is None:
        return None
    if kind == "warning":
        return kind, str(event.get("text", ""))
    what = {"policy": f"policy {event.get('policy')} adopted", "checkpoint": "checkpoint", "resumed": "resumed"}
    return kind, f"{what[event['event']]} at step {event.get('step')}"
