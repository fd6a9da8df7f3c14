"""Columns of one run as figures over tokens: thinned, with their running mean, and told in words."""

from collections.abc import Callable, Mapping

import numpy as np

from mlpt.reporting.columns import Column, Metrics, kept_points, running_mean, running_spread
from mlpt.reporting.html.parts import Picture, band, course, faint, layout, look, number, trace

POINTS = 1200  # of a curve on a page of one run
_MANY = 60  # values from which on a running mean is drawn over the values themselves
_NOISY = 8  # estimates from which on their spread is drawn
TOKENS = "tokens"


def window_of(count: int) -> int:
    """Values that a running mean of `count` ones is taken over."""
    return max(3, count // 50)


def lines(
    title: str,
    metrics: Metrics,
    columns: Mapping[str, Column],
    y_title: str,
    about: str = "",
    unit: str = "",
    log: bool = False,
) -> Picture:
    """One line for each column."""
    data, told = [], []
    for at, (name, column) in enumerate(columns.items()):
        xs = metrics.tokens_at(column.steps)
        mode = "lines+markers" if len(column) <= 40 else "lines"
        kept = kept_points(column.values, max(100, POINTS // max(1, len(columns) // 4)))
        data.append(trace(name, xs[kept], column.values[kept], look(at), mode=mode))
        told.append(course(name, xs, column.values, unit))
    axis = {"type": "log"} if log and all(column.values.min() > 0 for column in columns.values()) else {}
    return Picture(title, {"data": data, "layout": layout(TOKENS, y_title, yaxis=axis)}, "\n".join(told), about)


def noisy(
    title: str,
    metrics: Metrics,
    column: Column,
    y_title: str,
    about: str = "",
    others: Mapping[str, Column] | None = None,
    name: str = "logged",
    log: bool = False,
) -> Picture:
    """A column that jumps about: its values in the back, their running mean in front; `others` are drawn as points."""
    xs, colour = metrics.tokens_at(column.steps), look(0)["color"]
    data, told = [], []
    if len(column) >= _MANY:
        kept = kept_points(column.values, POINTS)
        mean = running_mean(column.values, window_of(len(column)))
        data.append(trace(name, xs[kept], column.values[kept], {"color": faint(colour, 0.35), "width": 1}))
        kept = kept_points(mean, POINTS // 3)
        data.append(trace("running mean", xs[kept], mean[kept], {"color": colour, "width": 2.5}))
    elif len(column):
        data.append(trace(name, xs, column.values, {"color": colour}, mode="lines+markers"))
    if len(column):
        told.append(course(name.capitalize(), xs, column.values))
    if column.missing:
        told.append(f"{column.missing} values were not finite.")
    for at, (other, points) in enumerate((others or {}).items(), start=1):
        places = metrics.tokens_at(points.steps)
        kept = kept_points(points.values, POINTS // 3)
        marks = {"color": look(at)["color"], "size": 8, "symbol": ("diamond", "square", "x", "cross")[at % 4]}
        mode = "markers" if len(points) <= 2 else "lines+markers"
        line = look(at) | {"width": 1}
        data.append(trace(other, places[kept], points.values[kept], line, mode=mode, marker=marks))
        told.append(course(other, places, points.values))
    axis = {"type": "log"} if log and len(column) and column.values.min() > 0 else {}
    return Picture(title, {"data": data, "layout": layout(TOKENS, y_title, yaxis=axis)}, "\n".join(told), about)


def with_noise(title: str, metrics: Metrics, columns: Mapping[str, Column], y_title: str, about: str = "") -> Picture:
    """Estimates that are noisy: each column's running mean, in a band of its running standard deviation."""
    data, told = [], []
    for at, (name, column) in enumerate(columns.items()):
        xs, colour = metrics.tokens_at(column.steps), look(at)["color"]
        if len(column) < _NOISY:
            data.append(trace(name, xs, column.values, look(at), mode="lines+markers"))
        else:
            window = max(5, len(column) // 20)
            mean, spread = running_mean(column.values, window), running_spread(column.values, window)
            kept = kept_points(mean, POINTS // 3)
            data += band(name, xs[kept], (mean - spread)[kept], (mean + spread)[kept], colour, name)
            data.append(trace(name, xs[kept], mean[kept], look(at)))
        told.append(
            f"{name}: mean {number(float(column.values.mean()))}, standard deviation "
            f"{number(float(column.values.std()))} over {len(column)} updates, last {number(float(column.values[-1]))}."
        )
    shown = about if any(len(column) >= _NOISY for column in columns.values()) else ""
    return Picture(title, {"data": data, "layout": layout(TOKENS, y_title)}, "\n".join(told), shown)


def stacked(title: str, metrics: Metrics, columns: Mapping[str, Column], first: Mapping[str, float]) -> Picture:
    """Shares that sum to 1 over tokens, one on top of the other."""
    steps, rows = _together(columns, first)
    changes = np.any(np.abs(np.diff(rows, axis=0)) > 1e-12, axis=1)
    kept = np.flatnonzero(np.concatenate([[True], changes]) | np.concatenate([changes, [True]]))
    if len(kept) > POINTS:
        thin = [kept_points(rows[kept, at], POINTS // len(columns)) for at in range(len(columns))]
        kept = kept[np.unique(np.concatenate(thin))]
    xs, data, told = metrics.tokens_at(steps[kept]), [], []
    for at, name in enumerate(columns):
        share = rows[kept, at]
        fill = {"stackgroup": "mixture", "fillcolor": faint(look(at)["color"], 0.6)}
        data.append(trace(name, xs, share, {"color": look(at)["color"], "width": 1, "shape": "hv"}, **fill))
        told.append(course(name, xs, share))
    figure = {"data": data, "layout": layout(TOKENS, "share", yaxis={"range": [0, 1]})}
    return Picture(title, figure, "\n".join(told), "Probability of each at every moment, as adopted by training.")


def _together(columns: Mapping[str, Column], first: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) at which any share was logged, and shares (n, columns): each stays until it is logged anew."""
    begin = [np.zeros(1)] if first else []
    steps = np.unique(np.concatenate([*begin, *(column.steps for column in columns.values())]))
    rows = np.zeros((len(steps), len(columns)))
    for at, (name, column) in enumerate(columns.items()):
        before = np.searchsorted(column.steps, steps, side="right") - 1
        rows[:, at] = np.where(before >= 0, column.values[np.maximum(before, 0)], first.get(name, column.values[0]))
    return steps, rows


def scaled(columns: Mapping[str, Column], by: Callable[[np.ndarray], np.ndarray]) -> dict[str, Column]:
    """The same columns in another unit."""
    return {name: Column(column.steps, by(column.values), column.missing) for name, column in columns.items()}
