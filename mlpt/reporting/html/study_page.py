"""The page of a study: its declared comparisons with intervals and verdicts, every measurement over cells and seeds."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlpt.reporting.html.parts import COLOURS, Picture, Section, Table, Text, layout, number, without_paths
from mlpt.reporting.studies import Study

Values = Mapping[str, Any]


def tiles(study: Study) -> dict[str, str]:
    """The key figures of a study."""
    states = [run["state"] for run in study.runs()]
    verdicts = [one["verdict"].split("(")[0].strip() for one in study.values["comparisons"]]
    shown = sum(not verdict.startswith("not shown") for verdict in verdicts)
    return {
        "runs": ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "–",
        "cells": number(len(study.values["cells"])),
        "seeds": ", ".join(str(seed) for seed in study.values.get("seeds", ())),
        "comparisons decided": f"{shown} of {len(verdicts)}",
    }


def sections(study: Study) -> list[Section]:
    """Those that have something to show."""
    made = [
        Section(
            "Question",
            [Text("Decision, as declared", study.values.get("decision") or "none")],
            study.values["question"],
        ),
        Section("Declared comparisons", list(_comparisons(study.values["comparisons"]))),
        Section("Measurements", list(_measurements(study.values["cells"]))),
        Section("What is not there", list(_lacking(study))),
    ]
    return [section for section in made if section.parts]


def _comparisons(found: list[Values]) -> Iterator[Picture | Table]:
    for measurement in dict.fromkeys(one["measurement"] for one in found):
        drawn = [one for one in found if one["measurement"] == measurement and one["gain"] is not None]
        if drawn:
            yield _gains(measurement, drawn)
    if found:
        rows = [
            [
                one["measurement"],
                _named(one),
                len(one["seeds"]),
                *(_interval(one["gain"]) if one["gain"] else ("–", "–")),
                number(one["p_corrected"]),
                one["verdict"],
            ]
            for one in found
        ]
        headings = ["measurement", "declared", "seeds", "gain", "95 % interval", "p, corrected", "verdict"]
        hint = "p: paired t-tests (of equality: two one-sided ones), corrected by Holm over all declared comparisons."
        yield Table("Verdicts", headings, rows, hint)


def _gains(measurement: str, drawn: list[Values]) -> Picture:
    gains = [one["gain"] for one in drawn]
    more = {"height": 110 + 34 * len(drawn), "hovermode": "closest", "xaxis": {"zeroline": True, "zerolinewidth": 2}}
    axes = layout(f"gain in {measurement}", "", yaxis={"type": "category", "autorange": "reversed"}, **more)
    figure = {"data": [_bars([_named(one) for one in drawn], gains)], "layout": axes}
    told = [f"{_named(one)}: {' '.join(_interval(one['gain']))}, {one['verdict']}." for one in drawn]
    about = "Mean paired difference over seeds and its 95 % interval; positive where what was declared holds."
    return Picture(measurement, figure, "\n".join(told), about)


def _measurements(cells: Mapping[str, Values]) -> Iterator[Picture]:
    for name in dict.fromkeys(name for cell in cells.values() for name in cell["measurements"]):
        spreads = {cell: found["measurements"].get(name) for cell, found in cells.items()}
        there = {cell: spread for cell, spread in spreads.items() if spread is not None}
        if not there:
            continue
        points = [
            (cell, seed, value)
            for cell in there
            for seed, run in cells[cell]["runs"].items()
            if (value := run.get("values", {}).get(name)) is not None
        ]
        single = {
            **{"type": "scatter", "mode": "markers", "name": "one seed", "meta": {"quiet": True}},
            **{"x": [value for _, _, value in points], "y": [cell for cell, _, _ in points]},
            **{"text": [f"seed {seed}" for _, seed, _ in points], "hovertemplate": "%{text}: %{x}<extra>%{y}</extra>"},
            "marker": {"size": 6, "color": COLOURS[1], "symbol": "line-ns-open"},
        }
        means = _bars(list(there), list(there.values()))
        more = {"height": 110 + 34 * len(there), "hovermode": "closest"}
        axes = {"yaxis": {"type": "category", "autorange": "reversed"}}
        told = "\n".join(f"{cell}: {' '.join(_interval(one))} over {one['n']} seeds." for cell, one in there.items())
        about = "Mean over seeds with its 95 % interval (Student's t); short strokes are single seeds."
        yield Picture(name, {"data": [single, means], "layout": layout(name, "", **axes, **more)}, told, about)


def _bars(names: list[str], spreads: list[Values]) -> dict[str, Any]:
    """Means with intervals, a row each; a single seed has none."""
    over = [(one["high"] - one["mean"]) if one["high"] is not None else 0.0 for one in spreads]
    return {
        **{"type": "scatter", "mode": "markers", "name": "mean", "x": [one["mean"] for one in spreads], "y": names},
        "marker": {"size": 9, "color": COLOURS[0]},
        "error_x": {"type": "data", "array": over, "color": COLOURS[0], "thickness": 2, "width": 5},
    }


def _lacking(study: Study) -> Iterator[Table]:
    rows = []
    for cell, found in study.values["cells"].items():
        for seed, run in found["runs"].items():
            if run["state"] == "waiting":
                rows.append([cell, seed, "run", "not run yet"])
            rows += [[cell, seed, what, without_paths(why, study.place)] for what, why in run["why"].items()]
    if rows:
        yield Table("Runs and values that are not there", ["cell", "seed", "what", "why"], rows)


def _named(one: Values) -> str:
    first, second = one["compare"]
    return f"{first} equal to {second}" if one["expect"] == "equal" else f"{first} {one['expect']} than {second}"


def _interval(one: Values) -> tuple[str, str]:
    """Mean and interval for people."""
    if one["low"] is None:
        return number(one["mean"]), "no interval: one seed"
    return number(one["mean"]), f"{number(one['low'])} to {number(one['high'])}"
