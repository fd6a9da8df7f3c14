"""A study for people: `study.md`. It repeats what `study.json` holds, and has no number of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlpt.studies.declaration import Comparison, Declaration
from mlpt.studies.measurements import Measurement

Values = Mapping[str, Any]


def markdown(study: Declaration, results: Values) -> str:
    """The whole page."""
    parts = [
        f"# {study.name}\n\n**{study.question}**",
        _declared(study, results["declared"]),
        f"Decision, as declared: {results['decision']}",
        "## Measurements\n\n" + _measurements(study, results),
        _comparisons(study, results),
        _correlations(results["correlations"]),
        _equal_time(results["equal_time"]),
        _equal_loss(results["equal_loss"]),
        _troubles(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _declared(study: Declaration, declared: Values) -> str:
    lines = [f"Declared {declared['when']}, before its first run (digest {declared['digest']})."]
    lines += [f"Added later, on {one}." for one in declared["added"]]
    budget = f"{study.budget} for every run" if study.budget is not None else "none in common, each cell has its own"
    own = [f"{name}: {cell.budget}" for name, cell in study.cells.items() if cell.budget is not None]
    budget += f" (except {'; '.join(own)})" if own else ""
    seeds = ", ".join(map(str, study.seeds))
    lines.append(f"Budget: {budget}. Seeds: {seeds}. CPU threads of a run: {study.threads}.")
    return "\n".join(lines)


def _measurements(study: Declaration, results: Values) -> str:
    names = list(study.measurements)
    rows = [["cell", *(_headed(name, study.measurements[name]) for name in names), "n", "tokens", "seconds", "meta"]]
    for cell, found in results["cells"].items():
        done = [run for run in found["runs"].values() if run["state"] == "done"]
        shown = [_spread(found["measurements"][name], study.measurements[name], len(done)) for name in names]
        rows.append([cell, *shown, f"{len(done)} of {len(found['runs'])}", *_costs(found["costs"])])
    note = (
        "Mean ± standard deviation over seeds [95 % interval of the mean, Student's t]. Seconds: of training, what "
        "meta-learning makes it wait for included; meta: the share of that."
    )
    return f"{_table(rows)}\n\n{note}"


def _headed(name: str, measurement: Measurement) -> str:
    about = [measurement.unit] if measurement.unit else []
    if measurement.better_is is not None:
        about.append(f"{measurement.better_is} is better")
    return f"{name} ({', '.join(about)})" if about else name


def _spread(found: Values | None, measurement: Measurement, runs: int) -> str:
    if found is None:
        return "-"
    text = measurement.show(found["mean"])
    if found["sd"] is not None:
        low, high = measurement.show(found["low"]), measurement.show(found["high"])
        text += f" ± {measurement.show(found['sd'])} [{low}, {high}]"
    return text if found["n"] == runs else f"{text} ({found['n']} of {runs})"


def _costs(costs: Values) -> list[str]:
    tokens = f"{costs['tokens']['mean']:,.0f}" if "tokens" in costs else "-"
    seconds = f"{costs['seconds']['mean']:,.1f}" if "seconds" in costs else "-"
    share = costs["meta_seconds"]["mean"] / costs["seconds"]["mean"] if "meta_seconds" in costs else None
    return [tokens, seconds, "-" if share is None else f"{100 * share:.1f} %"]


def _comparisons(study: Declaration, results: Values) -> str:
    if not study.comparisons:
        return ""
    flips = any(one["p_flips"] is not None for one in results["comparisons"])
    rows = [["declared", "n", "gain", "p", "p, corrected", *(["p, sign flips, corrected"] if flips else []), "verdict"]]
    for declared, found in zip(study.comparisons, results["comparisons"], strict=True):
        measurement = study.measurements[declared.measurement]
        gain = "-" if found["gain"] is None else measurement.show(found["gain"]["mean"], signed=True)
        ps = [found["p"], found["p_corrected"], *([found["p_flips_corrected"]] if flips else [])]
        rows.append([_expected(declared, measurement), str(len(found["seeds"])), gain, *map(_p, ps), found["verdict"]])
    count = len(study.comparisons)
    note = (
        "Gain: paired differences over seeds, positive where what was declared holds. p: two-sided paired t-test (of "
        f"equality: two one-sided ones), corrected by Holm over {count} declared comparison{'s' if count > 1 else ''}; "
        "a verdict needs a corrected p of 0.05 or less."
    )
    return f"## Comparisons\n\n{_table(rows)}\n\n{note}"


def _expected(one: Comparison, measurement: Measurement) -> str:
    first, second = one.compare
    margin = measurement.show(abs(one.margin))
    if one.expect == "equal":
        return f"{one.measurement}: {first} equal to {second} to within {margin}"
    by = "" if one.margin == 0 else f" by {margin} at least" if one.margin > 0 else f", or worse by less than {margin}"
    return f"{one.measurement}: {first} {one.expect} than {second}{by}"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _correlations(found: Sequence[Values]) -> str:
    if not found:
        return ""
    rows = [["between", "runs", "Pearson", "Spearman"]]
    for one in found:
        left_out = f" (without {', '.join(one['without'])})" if one["without"] else ""
        coefficients = ["-" if one[name] is None else f"{one[name]:.2f}" for name in ("pearson", "spearman")]
        rows.append([f"{' and '.join(one['between'])}{left_out}", str(len(one["points"])), *coefficients])
    return f"## Correlations\n\n{_table(rows)}"


def _equal_time(found: Values | None) -> str:
    if found is None:
        return ""
    names = list(dict.fromkeys(name for cell in found["cells"].values() for name in cell["losses"]))
    rows = [["cell", *(f"{name}, meta-dev (nats)" for name in names), "tokens by then", "evaluated at, seconds"]]
    for cell, values in found["cells"].items():
        shown = [_plain(values["losses"].get(name)) for name in names]
        rows.append([cell, *shown, f"{values['tokens']['mean']:,.0f}", f"{values['seconds']['mean']:,.1f}"])
    note = (
        f"What runs had measured on the meta-dev split within {found['seconds']:,.1f} seconds of training, the time of "
        "the quickest run: the last evaluation of each run that was over by then. The tables above are at equal "
        "tokens. Seconds depend on what else the machine did."
    )
    return f"## Equal wall-clock\n\n{_table(rows)}\n\n{note}"


def _equal_loss(found: Sequence[Values]) -> str:
    if not found:
        return ""
    rows = [["loss", "cell", "against", "n", "tokens, % of theirs", "seconds, % of theirs", "never there"]]
    for one in found:
        shares = [_percent(one[name]) for name in ("tokens", "seconds")]
        never = ", ".join(f"seed {seed}" for seed in one["never"]) or "-"
        rows.append([one["loss"], *one["compare"], str(len(one["seeds"])), *shares, never])
    note = (
        "What the cell took until its meta-dev loss was the one that the other, with the same seed, had at its last "
        "evaluation, linearly between evaluations: mean over the seeds that came there [95 % interval]."
    )
    return f"## Equal loss\n\n{_table(rows)}\n\n{note}"


def _percent(found: Values | None) -> str:
    if found is None:
        return "-"
    interval = "" if found["low"] is None else f" [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"
    return f"{100 * found['mean']:.0f}{interval}"


def _plain(found: Values | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:.3f}" + ("" if found["sd"] is None else f" ± {found['sd']:.3f}")


def _troubles(results: Values) -> str:
    """Runs that failed or are still to come, and values that are not there, with the reason."""
    lines = []
    for cell, found in results["cells"].items():
        for seed, run in found["runs"].items():
            if run["state"] == "waiting":
                lines.append(f"* {cell}, seed {seed}: not run yet")
            lines += [f"* {cell}, seed {seed}, {what}: {why}" for what, why in run["why"].items()]
    return "## What is not there\n\n" + "\n".join(lines) if lines else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
