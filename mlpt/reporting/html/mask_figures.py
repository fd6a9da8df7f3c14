"""Figures of masks: what they keep of each layer, and how many weights changed sides."""

from mlpt.reporting.html.parts import Picture, Section, layout, look, number
from mlpt.reporting.records import Record

_MOST = 4  # moments that are drawn side by side


def mask_section(record: Record) -> Section:
    """Empty where the run has no masks."""
    steps = list(record.masks)
    if not steps:
        return Section("Masks")
    shown = steps if len(steps) <= _MOST else [steps[at * (len(steps) - 1) // (_MOST - 1)] for at in range(_MOST)]
    data = []
    for at, step in enumerate(shown):
        layers = record.masks[step]
        bar = {"type": "bar", "orientation": "h", "name": f"step {step:,}", "legendgroup": f"step {step:,}"}
        marker = {"color": look(at)["color"]}
        data.append({**bar, "y": [_short(name) for name in layers], "x": list(layers.values()), "marker": marker})
    rows = max(len(record.masks[step]) for step in shown)
    axis = {"range": [0, 1]}
    more = {"barmode": "group", "height": 120 + 20 * rows, "hovermode": "closest", "xaxis": axis}
    figure = {"data": data, "layout": layout("fraction kept", "", **more, yaxis={"autorange": "reversed"})}
    last = record.masks[steps[-1]]
    least, most = min(last, key=lambda one: last[one]), max(last, key=lambda one: last[one])
    told = (
        f"{len(last)} matrices at step {steps[-1]:,}: fewest kept in {least} ({number(last[least])}), most in {most} "
        f"({number(last[most])})."
    )
    return Section("Masks", [Picture("Density of each masked matrix", figure, told, "Fraction of the weights kept.")])


def _short(name: str) -> str:
    return name.removesuffix(".weight").replace("encoder.", "").replace("layers.", "layer ").replace("layer.", "layer ")
