"""Figures of masks: what they keep of each layer, and how many weights changed sides."""

from collections.abc import Iterator

import numpy as np

from mlpt.reporting.columns import Column
from mlpt.reporting.html.curves import lines
from mlpt.reporting.html.parts import Picture, Section, layout, look, number
from mlpt.reporting.records import Record

_MOST = 4  # moments that are drawn side by side


def mask_section(record: Record) -> Section:
    """Empty where the run has no masks."""
    steps = list(record.masks.kept)
    if not steps:
        return Section("Masks")
    shown = steps if len(steps) <= _MOST else [steps[at * (len(steps) - 1) // (_MOST - 1)] for at in range(_MOST)]
    data = []
    for at, step in enumerate(shown):
        layers = record.masks.kept[step]
        bar = {"type": "bar", "orientation": "h", "name": f"step {step:,}", "legendgroup": f"step {step:,}"}
        marker = {"color": look(at)["color"]}
        data.append({**bar, "y": [_short(name) for name in layers], "x": list(layers.values()), "marker": marker})
    rows = max(len(record.masks.kept[step]) for step in shown)
    axis = {"range": [0, 1]}
    more = {"barmode": "group", "height": 120 + 20 * rows, "hovermode": "closest", "xaxis": axis}
    figure = {"data": data, "layout": layout("fraction kept", "", **more, yaxis={"autorange": "reversed"})}
    last = record.masks.kept[steps[-1]]
    least, most = min(last, key=lambda one: last[one]), max(last, key=lambda one: last[one])
    told = (
        f"{len(last)} matrices at step {steps[-1]:,}: fewest kept in {least} ({number(last[least])}), most in {most} "
        f"({number(last[most])})."
    )
    density = Picture("Density of each masked matrix", figure, told, "Fraction of the weights kept.")
    return Section("Masks", [density, *_changes(record)])


def _changes(record: Record) -> Iterator[Picture]:
    """How many weights went from kept to pruned or back between the masks that the run has left."""
    changed = record.masks.changed
    if not changed:
        return
    steps = np.array(list(changed), dtype=float)
    columns = {
        name: Column(steps, 100 * np.array([shares[at] for shares in changed.values()]))
        for at, name in enumerate(("since the one before", "since the first"))
    }
    about = "Of all masked weights, those that are pruned in one mask and kept in the other."
    yield lines("Changes of the mask", record.metrics, columns, "% of the weights", about, "%")


def _short(name: str) -> str:
    return name.removesuffix(".weight").replace("encoder.", "").replace("layers.", "layer ").replace("layer.", "layer ")
