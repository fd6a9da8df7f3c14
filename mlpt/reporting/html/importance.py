"""What mattered in a sweep, as bars, with what such a figure is worth."""

from collections.abc import Sequence

from mlpt.reporting.html.parts import Picture, Section, layout, look, number
from mlpt.reporting.importance import LEAST, Importance, importance_of
from mlpt.reporting.sweeps import Sweep

_TITLE = "What mattered"
_ENOUGH = 30  # points from which on a ranking of a few parameters settles


def importance_section(sweep: Sweep, parameters: Sequence[str]) -> Section:
    """Of those `parameters` that differ between trials; empty where there is only one, or nothing was measured."""
    goal = next(iter(sweep.goals))
    measured = [trial for trial in sweep.trials if trial.status == "finished" and goal in trial.metrics]
    if len(parameters) < 2 or not measured:
        return Section(_TITLE)
    found = importance_of(sweep.trials, parameters, goal)
    if found is None:
        points = len({str([trial.parameters.get(name) for name in parameters]) for trial in measured})
        return Section(
            _TITLE, (), f"Not told from {points} finished points: it takes {LEAST} that differ, better {_ENOUGH}."
        )
    return Section(_TITLE, [_picture(found, goal)], _caveat(found))


def _picture(found: Importance, goal: str) -> Picture:
    order = sorted(found.share, key=lambda name: -found.share[name])
    shares = [found.share[name] for name in order]
    whiskers = {"type": "data", "array": [found.spread[name] for name in order], "color": "#3f5d73"}
    bar = {"type": "bar", "orientation": "h", "name": goal, "y": order, "x": shares, "error_x": whiskers}
    more = {"height": 130 + 34 * len(order), "hovermode": "closest", "yaxis": {"autorange": "reversed"}}
    figure = {
        "data": [{**bar, "marker": {"color": look(0)["color"]}}],
        "layout": layout(f"share of the variance of {goal}", "", **more),
    }
    told = "; ".join(
        f"{name} {number(round(found.share[name], 3))} ± {number(round(found.spread[name], 3))}" for name in order
    )
    about = (
        "How much worse a random forest predicts trials that it has not seen when this parameter is shuffled among "
        "them; whiskers: standard deviation over five folds."
    )
    return Picture(f"Importance for {goal}", figure, f"{told}.", about)


def _caveat(found: Importance) -> str:
    explained = f"{100 * max(0.0, found.explained):.0f} %"
    told = f"From {found.points} points; of the variance between trials that it has not seen the forest explains "
    told += f"{explained}."
    if found.explained < 0.2:
        told += " That is next to nothing: the ranking means nothing yet."
    elif found.points < _ENOUGH:
        told += f" Below {_ENOUGH} points a ranking is a hint at most."
    return (
        f"{told} It speaks of the ranges that were searched, and where the search looked: a parameter that was hardly "
        "varied looks unimportant, and two that go together share their importance."
    )
