"""When what happened: starts of the run, of ranks and of the meta-learner, adopted policies, checkpoints, warnings."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from mlpt.reporting.html.parts import Picture, Section, Table, layout, without_paths
from mlpt.reporting.logs import Kind, LogEvent
from mlpt.reporting.records import Record

_LOOKS = {
    "start": ("#0067a5", "triangle-right"),
    "policy": ("#00735c", "circle"),
    "checkpoint": ("#7a5c00", "square"),
    "warning": ("#c2410c", "diamond"),
    "error": ("#a61b29", "x"),
    "end": ("#3f5d73", "line-ns"),
}
_TIME = "%Y-%m-%d %H:%M:%S"
_MOST = 400  # points of a kind; starts, warnings and errors are all kept


def timeline_section(record: Record) -> Section:
    """Empty where nothing was noted."""
    events = sorted([*_of_starts(record), *record.events], key=lambda event: event.at)
    parts: list[Any] = [_picture(events)] if events else []
    if record.starts:
        rows = [
            [one.get("at"), one.get("step"), one.get("end") or record.state, one.get("until"), _why(one, record)]
            for one in record.starts
        ]
        parts.append(Table("Starts of this run", ["at", "from step", "ended", "when", "why"], rows))
    notable = [event for event in events if event.kind in ("warning", "error")]
    if notable:
        shown = [[f"{one.at:{_TIME}}", one.who, without_paths(one.text, record.place)] for one in notable[-50:]]
        parts.append(Table("Warnings and errors", ["at", "from", "text"], shown))
    return Section("Timeline", parts)


def _picture(events: list[LogEvent]) -> Picture:
    data, told = [], []
    for kind, (colour, symbol) in _LOOKS.items():
        found = [event for event in events if event.kind == kind]
        if not found:
            continue
        told.append(f"{kind}: {len(found)}")
        if kind in ("policy", "checkpoint"):
            found = found[:: max(1, len(found) // _MOST)]
        marker = {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}}
        points = {"x": [event.at.isoformat() for event in found], "y": [event.who for event in found]}
        text = [event.text[:160] for event in found]
        hover = {"text": text, "hovertemplate": "%{x|%H:%M:%S} %{text}<extra>%{y}</extra>"}
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": kind,
                "legendgroup": kind,
                "marker": marker,
                **points,
                **hover,
            }
        )
    who = dict.fromkeys(event.who for event in events)
    starts = Counter(event.who for event in events if event.kind == "start" and not event.text.startswith("resumed"))
    again = [f"{name} {number - 1} times" for name, number in starts.items() if number > 1]
    axis = {"type": "category", "categoryorder": "array", "categoryarray": list(who)[::-1]}
    more = {"height": 150 + 40 * len(who), "hovermode": "closest", "xaxis": {"type": "date"}, "yaxis": axis}
    summary = (
        f"From {events[0].at:{_TIME}} to {events[-1].at:{_TIME}}, by {', '.join(who)}. "
        f"Number of events by kind: {'; '.join(told)}. Started again: {', '.join(again) or 'nobody'}."
    )
    return Picture("What happened when", {"data": data, "layout": layout("local time", "", **more)}, summary)


def _of_starts(record: Record) -> Iterator[LogEvent]:
    for start in record.starts:
        if (at := _time(start.get("at"))) is not None:
            yield LogEvent(at, "run", "start", f"started at step {start.get('step')}")
        if (until := _time(start.get("until"))) is not None:
            kind: Kind = "error" if start.get("end") == "failed" else "end"
            text = start.get("error") or str(start.get("end"))
            yield LogEvent(until, "run", kind, without_paths(text, record.place))


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)).astimezone().replace(tzinfo=None)
    except ValueError:
        return None


def _why(start: dict[str, Any], record: Record) -> str:
    return without_paths(str(start.get("error") or ""), record.place)
