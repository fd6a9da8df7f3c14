"""Reading the numbers of finished runs: each is one that the run wrote down, never one between or beyond them."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpt.downstream.multitask.results import selected
from mlpt.errors import UserError
from mlpt.studies.measurements import Measurement, Reach, Score
from mlpt.studies.works import Multitask, Pretraining, Work
from mlpt.training.tracker import read_metrics


@dataclass(frozen=True)
class Dev:
    """A meta-dev evaluation along the way: the step, tokens and seconds of training behind it, and its losses, nats."""

    step: int
    tokens: int
    seconds: float
    losses: dict[str, float]


def value_of(measurement: Measurement, work: Work, folder: Path) -> float | None:
    """What the finished run in `folder` measured; None where a loss was never reached, or the run has no such thing.

    Raises `UserError` for a path that its summary doesn't have.
    """
    result = work.result(folder)
    if measurement.held_out is not None:
        loss = result.get("held_out", {}).get(measurement.held_out)
        return None if loss is None else float(loss)
    if measurement.reach is not None:
        return _reached(measurement.reach, evaluations(folder, result))
    if measurement.score is not None:
        return _score(measurement.score, result) if isinstance(work, Multitask) else None
    assert measurement.summary is not None
    return figure(result, measurement.summary)


def why_not(measurement: Measurement, work: Work) -> str | None:
    """Why runs of this work can't have a value of the measurement; None if they can."""
    reach, score = measurement.reach, measurement.score
    wanted = measurement.held_out if reach is None else reach.of
    if wanted is not None:
        if not isinstance(work, Pretraining):
            return f"'{work.name}' trains no objectives"
        config = work.before_start()
        if wanted.partition("@")[0] not in config.objectives:  # NAME@DOMAIN: an objective on one domain
            return f"'{work.name}' has no objective '{wanted}'; it has {', '.join(config.objectives)}"
        if reach is not None and not config.train.evaluate_every:
            return f"'{work.name}' is not evaluated along the way; set train.evaluate_every"
    if measurement.has_command and measurement.weights in (None, work.name) and not isinstance(work, Pretraining):
        return f"'{work.name}' leaves no pretrained model to measure"
    if measurement.has_command and measurement.weights not in (None, work.name) and not work.makes_masks:
        return f"'{work.name}' makes no masks for the weights of '{measurement.weights}'"
    if score is not None:
        tasks = work.tasks if isinstance(work, Multitask) else ()
        if not tasks:
            return f"'{work.name}' is no multi-task work"
        if score.task not in ("mean", *tasks):
            return f"'{work.name}' has no task '{score.task}'; it has {', '.join(tasks)}"
    return None


def figure(summary: Mapping[str, Any], path: str) -> float:
    """The number at a dotted path; `A + B / C` is the sum of A and B over C. Raises `UserError` where there is none."""
    sums = [sum(_at(summary, term.strip()) for term in part.split("+")) for part in path.split("/")]
    number = sums[0]
    for other in sums[1:]:
        if not other:
            raise UserError(f"'{path}' has no value: what it divides by is 0")
        number /= other
    return number


def evaluations(folder: Path, summary: Mapping[str, Any]) -> list[Dev]:
    """A pretraining run's evaluations along the way, in order."""
    a_step = summary["tokens"] / summary["steps"]
    return [
        Dev(line["step"], round(line["step"] * a_step), line["seconds"], line["dev"])
        for line in read_metrics(folder)
        if "dev" in line and "seconds" in line
    ]


def at_or_before(devs: list[Dev], seconds: float) -> Dev | None:
    """The last evaluation that was there after so many seconds of training."""
    there = [one for one in devs if one.seconds <= seconds]
    return there[-1] if there else None


def costs(work: Work, folder: Path) -> dict[str, float]:
    """What a run took: `steps`, `tokens` and `seconds` of training, `meta_seconds` of them for meta-learning."""
    result = work.result(folder)
    if isinstance(work, Pretraining):
        meta = result["meta"]
        taken = {name: float(result[name]) for name in ("steps", "tokens", "seconds")}
        return taken | {"meta_seconds": meta["launch"] + meta["stall"]}
    return {name: float(result[name]) for name in ("steps", "seconds")} if isinstance(work, Multitask) else {}


def _reached(asked: Reach, devs: list[Dev]) -> float | None:
    for one in devs:
        if asked.of not in one.losses:
            raise UserError(f"the run evaluates {', '.join(one.losses)}, not {asked.of}")
        if one.losses[asked.of] <= asked.loss:
            count = {"tokens": one.tokens, "seconds": one.seconds, "steps": one.step}[asked.counted_in]
            return float(count)
    return None


def _score(asked: Score, result: Mapping[str, Any]) -> float | None:
    scores = selected(result[asked.which], result["selects"])
    return statistics.fmean(scores.values()) if asked.task == "mean" else scores.get(asked.task)


def _at(summary: Mapping[str, Any], path: str) -> float:
    found: Any = summary
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            valid = ", ".join(found) if isinstance(found, Mapping) else "no more"
            raise UserError(f"the summary has no '{path}': at '{part}' there is {valid}")
        found = found[part]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UserError(f"'{path}' of the summary is no number")
    return float(found)
