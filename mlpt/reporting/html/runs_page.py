"""The page of several runs: side by side at equal tokens and at equal time, means over seeds, paired differences."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlpt.errors import pretrain_command
from mlpt.reporting.groups import (
    Axis,
    SeedGroup,
    common_grid,
    difference,
    final_values,
    having,
    mean_curve,
    on_grid,
    places,
)
from mlpt.reporting.html.parts import (
    Picture,
    Section,
    Table,
    Tabs,
    Text,
    band,
    duration,
    faint,
    layout,
    look,
    number,
    trace,
)
from mlpt.reporting.records import CONFIG, Record

_AXES: dict[str, tuple[Axis, str]] = {
    "equal tokens": ("tokens", "tokens"),
    "equal time": ("seconds", "seconds of training"),
}
_LOSSES = {"loss": "Training loss", "dev": "Held-out loss (meta-dev)"}
_FIGURES = {
    "gradient_norm": ("Gradient norm", "norm"),
    "tokens_per_second": ("Speed", "tokens/s"),
    "meta_stall_seconds": ("Waited for meta-learning", "seconds"),
    "learning_rate": ("Learning rate", "learning rate"),
}
_POINTS = 60_000  # of all curves of single runs in one figure


def tiles(groups: Sequence[SeedGroup]) -> dict[str, str]:
    """Key figures of all runs together."""
    records = [record for group in groups for record in group.records]
    states = [record.state for record in records]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    tokens = [record.tokens for record in records]
    return {
        "runs": number(len(records)),
        "groups": number(len(groups)),
        "states": counted,
        "tokens": " to ".join(number(one) for one in sorted({min(tokens), max(tokens)})),
    }


def sections(groups: Sequence[SeedGroup]) -> list[Section]:
    """Those that have something to show."""
    made = [
        Section("Runs", list(_tables(groups)), "Runs that differ in nothing but the seed form a group."),
        Section(
            "Losses side by side",
            list(_losses(groups)),
            "Means over the seeds of a group, in a band of ± one standard deviation.",
        ),
        Section("Paired differences", list(_differences(groups))),
        Section("Mixtures", list(_mixtures(groups))),
        Section("Other figures side by side", list(_figures(groups))),
        Section("Repeat these runs", [_commands(groups)]),
    ]
    return [section for section in made if section.parts]


def _tables(groups: Sequence[SeedGroup]) -> Iterator[Table]:
    records = [record for group in groups for record in group.records]
    names = list(dict.fromkeys(name for record in records for name in record.newest("held_out")))
    headings = ["run", "group", "seed", "state", "steps", "tokens", "time", *(f"held-out {name}" for name in names)]
    rows = []
    for group in groups:
        for record in group.records:
            losses = [record.newest("held_out").get(name) for name in names]
            about = [record.name, group.label, _seed(record), record.state, record.steps, record.tokens]
            rows.append([*about, duration(record.seconds), *losses])
    yield Table("All runs", headings, rows, "Held-out losses in nats, on the test split after training.")
    finals = []
    for group in groups:
        cells: list[Any] = [group.label, len(group.records)]
        for name in names:
            values = np.array(list(final_values(group, f"held_out/{name}").values()))
            cells.append(_mean_and_spread(values))
        finals.append(cells)
    if names:
        yield Table(
            "Groups",
            ["group", "runs", *(f"held-out {name}" for name in names)],
            finals,
            "Mean ± standard deviation over seeds.",
        )


def _mean_and_spread(values: np.ndarray) -> str:
    if not len(values):
        return "–"
    spread = f" ± {number(float(values.std(ddof=1)))}" if len(values) > 1 else ""
    return f"{number(float(values.mean()))}{spread}"


def _losses(groups: Sequence[SeedGroup]) -> Iterator[Tabs]:
    for kind, title in _LOSSES.items():
        for name in _names(groups, kind):
            yield _both_axes(groups, f"{kind}/{name}", f"{title} of {name}", "nats", smooth=kind == "loss")


def _figures(groups: Sequence[SeedGroup]) -> Iterator[Tabs]:
    for name, (title, unit) in _FIGURES.items():
        if having([record for group in groups for record in group.records], name):
            yield _both_axes(groups, name, title, unit, smooth=name not in ("learning_rate", "meta_stall_seconds"))


def _names(groups: Sequence[SeedGroup], kind: str) -> list[str]:
    return list(
        dict.fromkeys(name for group in groups for record in group.records for name in record.metrics.under(kind))
    )


def _both_axes(groups: Sequence[SeedGroup], name: str, title: str, unit: str, smooth: bool) -> Tabs:
    pictures = {
        label: _curves(groups, name, title, unit, axis, x_title, smooth) for label, (axis, x_title) in _AXES.items()
    }
    return Tabs(f"{title}: compared at", pictures)


def _curves(
    groups: Sequence[SeedGroup], name: str, title: str, unit: str, axis: Axis, x_title: str, smooth: bool
) -> Picture:
    records = [record for group in groups for record in group.records]
    grid = common_grid(records, name, axis)
    data, told = [], []
    points = max(60, min(300, _POINTS // max(1, len(records))))
    for at, group in enumerate(groups):
        colour = look(at)["color"]
        members = having(group.records, name)
        if len(members) > 1:
            for record in members:
                reach = places(record, record.metrics.columns[name], axis)
                xs = np.linspace(reach[0], reach[-1], min(points, len(reach)))
                thin = {"color": faint(colour, 0.35), "width": 1}
                quiet = {"meta": {"quiet": True}, "hoverinfo": "skip"}
                data.append(trace(record.name, xs, on_grid(record, name, axis, xs, smooth), thin, group.label, **quiet))
        mean = mean_curve(group.records, name, axis, grid, smooth)
        if mean is None:
            continue
        if mean.count > 1:
            low, high = mean.mean - mean.spread, mean.mean + mean.spread
            data += band(group.label, grid, low, high, colour, group.label)
        data.append(trace(group.label, grid, mean.mean, look(at) | {"width": 2.5}))
        spread = f" ± {number(float(mean.spread[-1]))} ({mean.count} runs)" if mean.count > 1 else " (1 run)"
        told.append(f"{group.label}: {number(float(mean.mean[-1]))}{spread}.")
    if len(grid):
        told.insert(0, f"At {number(float(grid[-1]))} {x_title}, where every run has come to, in {unit}:")
    else:
        told.append("The runs have no stretch in common.")
    about = f"{'Running means. ' if smooth else ''}Thin lines are single runs."
    return Picture(title, {"data": data, "layout": layout(x_title, unit)}, "\n".join(told), about)


def _differences(groups: Sequence[SeedGroup]) -> Iterator[Picture | Table]:
    if len(groups) < 2:
        return
    base, rows, data, told = groups[0], [], [], []
    names = [f"{kind}/{name}" for kind in ("held_out", "dev") for name in _names(groups, kind)]
    for at, group in enumerate(groups[1:], start=1):
        found = {name: difference(group.label, final_values(base, name), final_values(group, name)) for name in names}
        known = {name: one for name, one in found.items() if one is not None}
        for name, one in known.items():
            sure = len(one.by_seed) > 1
            interval = f"{number(one.low)} to {number(one.high)}" if sure else "one seed: no interval"
            rows.append([name, group.label, len(one.by_seed), one.mean, interval])
            if sure and (one.low > 0 or one.high < 0):
                told.append(f"{name}: {group.label} is {'higher' if one.low > 0 else 'lower'} than {base.label}.")
        if known:
            ys, means = list(known), [one.mean for one in known.values()]
            bars = {"type": "data", "array": [one.high - one.mean for one in known.values()], "width": 6}
            marker = {"color": look(at)["color"], "size": 10}
            named = {"type": "scatter", "mode": "markers", "name": group.label, "legendgroup": group.label}
            data.append({**named, "x": means, "y": ys, "error_x": bars, "marker": marker})
    if not rows:
        return
    zero = {
        "type": "line",
        "x0": 0,
        "x1": 0,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": "#1d2733", "dash": "dot"},
    }
    more = {"height": 140 + 34 * len(names), "hovermode": "closest", "shapes": [zero]}
    figure = {"data": data, "layout": layout("difference in nats", "", yaxis={"type": "category"}, **more)}
    summary = "\n".join(told) or "No interval leaves out zero: nothing here is told apart by these seeds."
    about = f"Of the last losses, seed by seed, minus {base.label}: mean and 95 % t interval. Left of zero is better."
    yield Picture("Difference to the first group", figure, summary, about)
    yield Table("Differences", ["loss", "group", "seeds", "mean (nats)", "95 % interval"], rows, f"Minus {base.label}.")


def _mixtures(groups: Sequence[SeedGroup]) -> Iterator[Picture]:
    records = [(group, record) for group in groups for record in group.records if record.mixture]
    names = list(dict.fromkeys(name for _, record in records for name in record.mixture))
    if not records or len(names) < 2:
        return
    rows = [f"{record.name}" for _, record in records]
    data = []
    for at, name in enumerate(names):
        shares = [record.mixture.get(name, 0.0) for _, record in records]
        bar = {"type": "bar", "orientation": "h", "name": name, "legendgroup": name, "x": shares, "y": rows}
        data.append({**bar, "marker": {"color": look(at)["color"]}})
    more = {"barmode": "stack", "height": 130 + 26 * len(rows), "hovermode": "closest", "xaxis": {"range": [0, 1]}}
    axis = {"autorange": "reversed", "type": "category"}
    told = []
    for group in groups:
        means = {name: np.mean([one.mixture.get(name, 0.0) for one in group.records]) for name in names}
        told.append(f"{group.label}: {', '.join(f'{name} {share:.3f}' for name, share in means.items())}.")
    figure = {"data": data, "layout": layout("share", "", **more, yaxis=axis)}
    yield Picture(
        "Newest mixture of each run", figure, "\n".join(told), "Means over the runs of a group are in the text."
    )


def _commands(groups: Sequence[SeedGroup]) -> Text:
    records = [record for group in groups for record in group.records]
    lines = [pretrain_command(f"{record.place}/{CONFIG}", "run_dir=ANOTHER") for record in records]
    return Text("Commands", "\n".join(lines), folded=len(lines) > 6)


def _seed(record: Record) -> str:
    return str(record.seed)
