"""All that a study has found so far, as plain data: `study.json`."""

from collections.abc import Hashable, Mapping
from dataclasses import asdict
from typing import Any

from mlpt.errors import UserError
from mlpt.studies.declaration import Comparison, Correlation
from mlpt.studies.equal_loss import equal_loss
from mlpt.studies.history import Declared
from mlpt.studies.inference import LEVEL, Paired, correlation, holm, paired, spread
from mlpt.studies.measurements import Measurement
from mlpt.studies.plan import Plan
from mlpt.studies.values import Dev, at_or_before, costs, evaluations, value_of
from mlpt.studies.verdicts import verdict
from mlpt.studies.works import Pretraining, Work

Values = dict[str, Any]


def collect(plan: Plan, declared: Declared, failed: Mapping[Hashable, str]) -> Values:
    """Everything that is known: of each run what it measured and took, of each cell the spreads, of each comparison the
    verdict. `failed`: the tasks of this call that failed, with the reason."""
    study = plan.study.declared
    cells = {name: _cell(plan, name, failed) for name in plan.works}
    equal_time = _equal_time(plan)
    return {
        "name": study.name,
        "question": study.question,
        "decision": " ".join(study.decision.split()),
        "declared": asdict(declared),
        "budget": None if study.budget is None else study.budget.model_dump(exclude_none=True),
        "seeds": study.seeds,
        "cells": cells,
        "comparisons": _compared(study.comparisons, study.measurements, cells),
        "correlations": [_correlated(one, cells) for one in study.correlations],
        "equal_time": equal_time,
        "equal_loss": equal_loss(plan),
    }


def _cell(plan: Plan, name: str, failed: Mapping[Hashable, str]) -> Values:
    work = plan.works[name]
    runs = {str(seed): _run(plan, work, seed, failed) for seed in plan.study.declared.seeds}
    finished = [run for run in runs.values() if run["state"] == "done"]
    spreads = {}
    for measurement in plan.study.declared.measurements:
        values = [value for run in finished if (value := run["values"].get(measurement)) is not None]
        spreads[measurement] = asdict(spread(values)) if values else None
    taken = {
        cost: asdict(spread([run["costs"][cost] for run in finished]))
        for cost in (finished[0]["costs"] if finished else ())
    }
    return {"measurements": spreads, "costs": taken, "runs": runs}


def _run(plan: Plan, work: Work, seed: int, failed: Mapping[Hashable, str]) -> Values:
    """state: done, failed or waiting. `values` has None where the run could not have one, and `why` says so."""
    folder = work.run(seed)
    if not work.is_done(folder):
        reason = failed.get(("run", work.name, seed))
        return {"state": "waiting", "why": {}} if reason is None else {"state": "failed", "why": {"run": reason}}
    values: dict[str, float | None] = {}
    why: dict[str, str] = {}
    for name, measurement in plan.study.declared.measurements.items():
        command = plan.commands.get((name, work.name))
        if not plan.has(measurement, work.name) or (measurement.has_command and command is None):
            continue
        try:
            if command is None:
                values[name] = value_of(measurement, work, folder)
            elif command.is_done(seed):
                values[name] = command.value(seed)
            elif (reason := failed.get(("measure", command.source, work.name, seed))) is not None:
                why[name] = reason
        except UserError as error:
            why[name] = str(error)
        if measurement.reach is not None and values.get(name, 0) is None:
            why[name] = f"never at {measurement.reach.loss:g} nats or below"
    return {"state": "done", "values": values, "why": why, "costs": costs(work, folder), "folder": str(folder)}


def _compared(
    comparisons: list[Comparison], measurements: Mapping[str, Measurement], cells: Mapping[str, Values]
) -> list[Values]:
    """Each comparison over the seeds that both cells have a value of; p-values corrected over all that are declared."""
    found: list[tuple[Comparison, list[str], Paired | None, list[str]]] = []
    for one in comparisons:
        first, second = (
            {seed: _value(run, one.measurement) for seed, run in cells[cell]["runs"].items()} for cell in one.compare
        )
        both = [seed for seed in first if first[seed] is not None and second[seed] is not None]
        lacking = [seed for seed in first if seed not in both]
        ours, theirs = ([side[seed] or 0.0 for seed in both] for side in (first, second))
        found.append((one, both, paired(ours, theirs, one.expect, one.margin) if both else None, lacking))
    corrected = holm([None if pair is None else pair.p for _, _, pair, _ in found])
    corrected_flips = holm([None if pair is None else pair.p_flips for _, _, pair, _ in found])
    return [
        {
            **one.model_dump(mode="json"),
            "seeds": [int(seed) for seed in both],
            "seeds_lacking": [int(seed) for seed in lacking],
            "gain": None if pair is None else asdict(pair.gain),
            "p": None if pair is None else pair.p,
            "p_corrected": p,
            "p_flips": None if pair is None else pair.p_flips,
            "p_flips_corrected": flips,
            "level": LEVEL,
            "verdict": verdict(one, measurements[one.measurement], pair, p),
        }
        for (one, both, pair, lacking), p, flips in zip(found, corrected, corrected_flips, strict=True)
    ]


def _correlated(one: Correlation, cells: Mapping[str, Values]) -> Values:
    """A correlation with its points, [cell, seed, first value, second value]."""
    points = [
        [cell, int(seed), values[one.between[0]], values[one.between[1]]]
        for cell, found in cells.items()
        if cell not in one.without
        for seed, run in found["runs"].items()
        if all((values := run.get("values", {})).get(name) is not None for name in one.between)
    ]
    return {**one.model_dump(), **correlation(*([point[at] for point in points] for at in (2, 3))), "points": points}


def _value(run: Values, measurement: str) -> float | None:
    value: float | None = run.get("values", {}).get(measurement)
    return value


def _equal_time(plan: Plan) -> Values | None:
    """Meta-dev losses after as many seconds of training as the quickest run took; None where a run has none.

    Of each run its last evaluation within that time: what was measured, never later than that.
    """
    budget = plan.study.declared.budget
    wanted = _losses_asked(plan)
    works = [work for work in plan.works.values() if isinstance(work, Pretraining) and work.cell.budget is None]
    if budget is None or budget.seconds is not None or not wanted or not works:
        return None
    finished = {
        (work.name, seed): (work.result(folder)["seconds"], evaluations(folder, work.result(folder)))
        for work in works
        for seed in plan.study.declared.seeds
        if work.is_done(folder := work.run(seed))
    }
    if not finished or not all(devs for _, devs in finished.values()):
        return None
    seconds = min(taken for taken, _ in finished.values())
    cells: Values = {}
    for work in works:
        devs = [at_or_before(found, seconds) for (name, _), (_, found) in finished.items() if name == work.name]
        there = [one for one in devs if one is not None]
        if there and len(there) == len(devs):
            cells[work.name] = _at_time(there, wanted)
    return {"seconds": seconds, "cells": cells}


def _at_time(devs: list[Dev], wanted: list[str]) -> Values:
    losses = {name: [one.losses[name] for one in devs if name in one.losses] for name in wanted}
    return {
        "tokens": asdict(spread([float(one.tokens) for one in devs])),
        "seconds": asdict(spread([one.seconds for one in devs])),
        "losses": {name: asdict(spread(values)) for name, values in losses.items() if values},
    }


def _losses_asked(plan: Plan) -> list[str]:
    asked = [one.held_out or (one.reach and one.reach.of) for one in plan.study.declared.measurements.values()]
    return list(dict.fromkeys(name for name in asked if name))
