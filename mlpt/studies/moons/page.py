"""The tables of the two-moons study: accuracy with intervals beside the published numbers, and paired differences."""

from collections.abc import Mapping, Sequence

from mlpt.studies.inference import holm, paired, spread
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
    """Paired with the cell `study.against`: mean, 95 % interval and corrected p."""
    pairs = [
        (name, labels)
        for name in study.compare
        for labels in study.labels
        if labels in found.get(name, {}) and labels in found.get(study.against, {})
    ]
    tested = []
    for name, labels in pairs:
        sides = [[100 * one for one in found[cell][labels]["best"]] for cell in (name, study.against)]
        tested.append(paired(sides[0], sides[1], "higher", 0.0))
    corrected = dict(zip(pairs, zip(tested, holm([one.p for one in tested]), strict=True), strict=True))
    lines = [_row("batches by", [f"{n} labels" for n in study.labels]), _row("---", ["---"] * len(study.labels))]
    for name in study.compare:
        cells = []
        for labels in study.labels:
            if (name, labels) not in corrected:
                cells.append("-")
                continue
            one, p = corrected[name, labels]
            interval = "" if one.gain.low is None else f" [{one.gain.low:+.1f}, {one.gain.high:+.1f}]"
            cells.append(f"{one.gain.mean:+.1f}{interval}" + ("" if p is None else f", p {p:.2f}"))
        lines.append(_row(name, cells))
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
