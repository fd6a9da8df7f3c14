"""The tables of the two-moons study: accuracy with intervals beside the published numbers, and paired differences."""

from collections.abc import Mapping, Sequence

from mlpt.studies.inference import Paired, holm, paired, spread
from mlpt.studies.moons.declaration import MoonsStudy
from mlpt.training.many_teachers import FIGURES

# Test accuracy in percent of the report's table, one seed each.
PUBLISHED: dict[str, dict[int, float]] = {
    "mlm": {10: 61.40, 20: 76.60, 40: 82.40, 80: 85.30, 160: 92.30},
    "hard": {10: 60.60, 20: 62.90, 40: 74.80, 80: 86.00, 160: 90.50},
    "soft": {10: 56.30, 20: 74.60, 40: 71.00, 80: 86.20, 160: 93.20},
    "soft inputs": {10: 75.10, 160: 94.00},
}
Found = Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]  # cell, labels, which epoch: accuracies by seed


def markdown(study: MoonsStudy, found: Found, histories: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """The whole page."""
    steps = f"{study.steps:,} steps of {study.texts} texts, {len(study.seeds)} seeds"
    lines = [f"# {study.name}", "", study.question, "", f"Declared: {steps}. {study.decision}", ""]
    for which, title in (("best", "at the epoch that is best on the dev points"), ("last", "after the last epoch")):
        lines += [f"Held-out accuracy in percent {title}: mean, 95 % interval, published value.", ""]
        lines += [*accuracies(study, found, which), ""]
    lines += [
        f"Differences to `{study.against}` with the same seed, in points; p by Holm over all of them.",
        "",
    ]
    lines += [*differences(study, found), "", "What teachers wrote, means of the last 100 steps.", ""]
    return "\n".join([*lines, *figures(histories), ""])


def accuracies(study: MoonsStudy, found: Found, which: str) -> list[str]:
    """A row for each cell, a column for each label count."""
    lines = [_row("batches by", [f"{n} labels" for n in study.labels]), _row("---", ["---"] * len(study.labels))]
    for name, by_labels in found.items():
        cells = []
        for labels in study.labels:
            if labels not in by_labels:
                cells.append("-")
                continue
            values = spread([100 * one for one in by_labels[labels][which]])
            interval = "" if values.low is None else f" [{values.low:.1f}, {values.high:.1f}]"
            there = PUBLISHED.get(name, {}).get(labels)
            cells.append(f"{values.mean:.1f}{interval}" + ("" if there is None else f"; {there:.1f}"))
        lines.append(_row(name, cells))
    return lines


def differences(study: MoonsStudy, found: Found) -> list[str]:
    """Paired with the cell `study.against`: mean, 95 % interval, and p corrected over all pairs that are declared."""
    tested: dict[tuple[str, int], Paired | None] = {}
    for name in study.compare:
        for labels in study.labels_of(name):
            cells = (name, study.against)
            if labels in study.labels_of(study.against):
                values = [[100 * one for one in found.get(cell, {}).get(labels, {}).get("best", ())] for cell in cells]
                tested[name, labels] = paired(values[0], values[1], "higher", 0.0) if all(values) else None
    corrected = holm([None if one is None else one.p for one in tested.values()])
    shown = {key: (one, p) for (key, one), p in zip(tested.items(), corrected, strict=True) if one is not None}
    lines = [_row("batches by", [f"{n} labels" for n in study.labels]), _row("---", ["---"] * len(study.labels))]
    for name in study.compare:
        written = []
        for labels in study.labels:
            if (name, labels) not in shown:
                written.append("-")
                continue
            one, p = shown[name, labels]
            interval = "" if one.gain.low is None else f" [{one.gain.low:+.1f}, {one.gain.high:+.1f}]"
            written.append(f"{one.gain.mean:+.1f}{interval}" + ("" if p is None else f", p {p:.2f}"))
        lines.append(_row(name, written))
    return lines


def figures(histories: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """The last figures of each group of runs."""
    lines = [_row("runs", ["step", *FIGURES]), _row("---", ["---"] * (1 + len(FIGURES)))]
    for name, history in histories.items():
        if history:
            lines.append(_row(name, [f"{history[-1][0]:,.0f}", *(f"{value:.4f}" for value in history[-1][1:])]))
    return lines


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"
