"""The page of a sweep: every trial as a line through its parameters, the Pareto front, and a table."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlpt.reporting.html.importance import importance_section
from mlpt.reporting.html.parts import Picture, Section, Table, Text, faint, layout, number, without_paths
from mlpt.reporting.sweeps import SWEEP, Sweep, TrialRow, front

_GOOD, _BAD = (0, 87, 143), (214, 138, 40)  # of the first goal


def tiles(sweep: Sweep) -> dict[str, str]:
    """The key figures of a sweep."""
    states = [trial.status for trial in sweep.trials]
    found = {
        "state": "finished" if sweep.is_finished else "under way or stopped",
        "trials": number(len(states)),
        "of them": ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "–",
        "goal": ", ".join(f"{mode} {metric}" for metric, mode in sweep.goals.items()),
    }
    ranked = _ranked(sweep)
    if ranked:
        goal = next(iter(sweep.goals))
        found[f"best {goal}"] = number(ranked[0].metrics[goal])
    return found


def sections(sweep: Sweep) -> list[Section]:
    """Those that have something to show."""
    command = shlex.join(["mlpt", "tune", sweep.space.rpartition("/")[2] or "SPACE", *sweep.asked])
    made = [
        Section("Points of the space", list(_parallel(sweep))),
        importance_section(sweep, _varying(sweep)),
        Section("Parameters one by one", list(_scatters(sweep))),
        Section("Pareto front", list(_pareto(sweep))),
        Section("Trials", [_table(sweep)] if sweep.trials else (), "" if sweep.trials else "No trial has begun."),
        Section(
            "Repeat this sweep", [Text("Command", without_paths(command, sweep.place))], f"{SWEEP} has the exact words."
        ),
    ]
    return [section for section in made if section.parts or section.intro]


def _ranked(sweep: Sweep) -> list[TrialRow]:
    """Trials that measured the first goal: those that came to their end before the others, the best first."""
    goal, mode = next(iter(sweep.goals.items()))
    scored = [trial for trial in sweep.trials if goal in trial.metrics]
    sign = 1 if mode == "min" else -1
    return sorted(scored, key=lambda trial: (trial.status != "finished", sign * trial.metrics[goal]))


def _parallel(sweep: Sweep) -> Iterator[Picture]:
    ranked = _ranked(sweep)
    axes = [*_varying(sweep), *sweep.goals]
    if len(ranked) < 2 or len(axes) < 2:
        return
    places = {axis: _places([_value(trial, axis) for trial in ranked]) for axis in axes}
    data = []
    for at in reversed(range(len(ranked))):  # the best is drawn last, on top
        trial = ranked[at]
        said = [f"{axis}={number(_value(trial, axis))}" for axis in axes]
        line = {"color": _shade(at / max(1, len(ranked) - 1), 0.9), "width": 3 if at == 0 else 1.5}
        points = {"x": axes, "y": [places[axis][at] for axis in axes], "text": ["<br>".join(said)] * len(axes)}
        hover = {"hovertemplate": f"%{{text}}<extra>{trial.name}</extra>"}
        marker = {"size": 6, "color": line["color"]}
        named = {"type": "scatter", "mode": "lines+markers", "name": trial.name}
        data.append({**named, **points, **hover, "line": line, "marker": marker})
    ticks = {"tickmode": "array", "tickvals": [0, 0.5, 1], "ticktext": ["least", "", "largest"], "range": [-0.06, 1.06]}
    more = {"height": 420, "hovermode": "closest", "yaxis": ticks, "xaxis": {"type": "category"}}
    best = ", ".join(f"{axis}={number(_value(ranked[0], axis))}" for axis in axes)
    ends = [f"{axis}: {_range([_value(trial, axis) for trial in ranked])}" for axis in axes]
    summary = f"The best trial is {ranked[0].name}: {best}.\nFrom least to largest: {'; '.join(ends)}."
    about = "A line is a trial; blue ones are better. Each axis goes from its least value to its largest."
    yield Picture("All trials", {"data": data, "layout": layout("", "", **more)}, summary, about)


def _scatters(sweep: Sweep) -> Iterator[Picture]:
    ranked = _ranked(sweep)
    goal, mode = next(iter(sweep.goals.items()))
    if len(ranked) < 2:
        return
    for name in _varying(sweep):
        values = [trial.parameters.get(name) for trial in ranked]
        numeric = all(_is_number(value) for value in values)
        xs = values if numeric else [str(value) for value in values]
        axis: dict[str, Any] = {"type": "category"} if not numeric else {}
        if numeric and _is_wide(np.array(values, dtype=float)):
            axis = {"type": "log"}
        points = {"x": xs, "y": [trial.metrics[goal] for trial in ranked], "text": [trial.name for trial in ranked]}
        marker = {"size": 9, "color": "#0067a5", "opacity": 0.75}
        named = {"type": "scatter", "mode": "markers", "name": goal, "marker": marker}
        figure = {"data": [{**named, **points}], "layout": layout(name, goal, hovermode="closest", xaxis=axis)}
        yield Picture(
            name, figure, f"The {mode} of {goal} is at {name}={number(values[0])}.{_likeness(xs, ranked, goal)}"
        )


def _likeness(xs: Sequence[Any], ranked: Sequence[TrialRow], goal: str) -> str:
    """Spearman's rank correlation of a parameter with the goal, in words."""
    if not all(_is_number(x) for x in xs) or len(set(xs)) < 3 or len(xs) < 5:
        return ""
    from scipy import stats

    found = float(stats.spearmanr(xs, [trial.metrics[goal] for trial in ranked]).statistic)
    return f" Rank correlation with {goal}: {found:.2f} over {len(xs)} trials." if np.isfinite(found) else ""


def _pareto(sweep: Sweep) -> Iterator[Picture | Table]:
    if len(sweep.goals) < 2:
        return
    (first, mode), (second, other) = list(sweep.goals.items())[:2]
    able = [trial for trial in _ranked(sweep) if first in trial.metrics and second in trial.metrics]
    best = front(able, {first: mode, second: other})
    if not best:
        return
    data = []
    for name, trials, drawn, colour in (
        ("trials", able, "markers", "#7a8694"),
        ("front", best, "lines+markers", "#c2410c"),
    ):
        points = {"x": [one.metrics[first] for one in trials], "y": [one.metrics[second] for one in trials]}
        marker = {"size": 9, "color": colour}
        line = {"color": colour, "shape": "hv" if mode == other == "min" else "linear"}
        named = {"type": "scatter", "mode": drawn, "name": name, "legendgroup": name}
        data.append({**named, **points, "marker": marker, "line": line, "text": [one.name for one in trials]})
    summary = f"{len(best)} of {len(able)} trials are beaten by none in both: {', '.join(one.name for one in best)}."
    figure = {"data": data, "layout": layout(f"{first} ({mode})", f"{second} ({other})", hovermode="closest")}
    yield Picture(f"{first} against {second}", figure, summary)


def _table(sweep: Sweep) -> Table:
    names = _varying(sweep)
    metrics = list(dict.fromkeys([*sweep.goals, *(name for trial in sweep.trials for name in trial.metrics)]))
    ranked = _ranked(sweep)
    rest = [trial for trial in sweep.trials if trial not in ranked]
    rows = []
    for trial in [*ranked, *rest]:
        values = [trial.parameters.get(name) for name in names]
        rows.append(
            [trial.name, trial.status, str(trial.seed), trial.tokens, *values, *map(trial.metrics.get, metrics)]
        )
    return Table("Trials, the best first", ["trial", "state", "seed", "tokens", *names, *metrics], rows)


def _varying(sweep: Sweep) -> list[str]:
    names = dict.fromkeys(name for trial in sweep.trials for name in trial.parameters)
    return [name for name in names if len({str(trial.parameters.get(name)) for trial in sweep.trials}) > 1]


def _value(trial: TrialRow, axis: str) -> Any:
    return trial.metrics.get(axis, trial.parameters.get(axis))


def _places(values: Sequence[Any]) -> list[float | None]:
    """Each value between 0 (the least) and 1; what is no number by its place in the alphabet."""
    if not all(_is_number(value) for value in values):
        words = sorted({str(value) for value in values})
        return [words.index(str(value)) / max(1, len(words) - 1) for value in values]
    numbers = np.array(values, dtype=float)
    if _is_wide(numbers):
        numbers = np.log(numbers)
    return list((numbers - numbers.min()) / max(float(np.ptp(numbers)), 1e-12))


def _is_wide(values: np.ndarray) -> bool:
    """True where equal ratios, not equal differences, should look alike."""
    return bool(values.min() > 0 and values.max() / values.min() > 50)


def _range(values: Sequence[Any]) -> str:
    if all(_is_number(value) for value in values):
        return f"{number(min(values))} to {number(max(values))}"
    return ", ".join(sorted({str(value) for value in values}))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shade(share: float, opacity: float) -> str:
    mixed = [round(good + (bad - good) * share) for good, bad in zip(_GOOD, _BAD, strict=True)]
    return faint("#" + "".join(f"{one:02x}" for one in mixed), opacity)
