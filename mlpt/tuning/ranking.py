"""Which points of a sweep won: means over seeds with their spread, the best point, the Pareto front."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Trial:
    """One finished or failed run of one point with one seed. Points with equal settings are the same run."""

    trial_id: str
    point: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, float]
    tokens: int
    seconds: float
    status: Literal["finished", "stopped early", "failed"]
    error: str | None
    run_dir: str


@dataclass(frozen=True)
class Score:
    """One point: mean and spread (sample standard deviation; 0 for one seed) of each metric over its seeds."""

    point: Mapping[str, Any]
    means: Mapping[str, float]
    spreads: Mapping[str, float]
    trials: tuple[Trial, ...]

    @property
    def seeds(self) -> int:
        return len(self.trials)


def scores(trials: Sequence[Trial], metrics: Sequence[str]) -> list[Score]:
    """Group the trials by their settings. Only those that finished under every one of their seeds are scored.

    A point that was stopped early or failed under some seed would be compared at another budget or by fewer seeds.
    """
    groups: dict[str, dict[int, Trial]] = {}
    for trial in trials:  # a search may come back to a point: the same run twice is no second seed
        groups.setdefault(json.dumps(trial.settings, sort_keys=True, default=str), {}).setdefault(trial.seed, trial)
    return [
        _score(list(group.values()), metrics)
        for group in groups.values()
        if all(
            trial.status == "finished" and all(math.isfinite(trial.metrics.get(metric, math.nan)) for metric in metrics)
            for trial in group.values()
        )
    ]


def best(scored: Sequence[Score], metric: str, mode: Mode) -> Score | None:
    """The point with the best mean; None if no point can be compared."""
    sign = 1 if mode == "min" else -1
    return min(scored, key=lambda score: sign * score.means[metric], default=None)


def pareto_front(scored: Sequence[Score], metrics: Mapping[str, Mode]) -> list[Score]:
    """The points that no other point beats in one metric without losing in another, ordered by the first metric."""

    def costs(score: Score) -> list[float]:
        return [score.means[name] * (1 if mode == "min" else -1) for name, mode in metrics.items()]

    def dominated(score: Score) -> bool:
        mine = costs(score)
        return any(
            all(a <= b for a, b in zip(costs(other), mine, strict=True)) and costs(other) != mine for other in scored
        )

    return sorted((score for score in scored if not dominated(score)), key=costs)


def winning(trials: Sequence[Trial], metrics: Mapping[str, Mode]) -> list[Score]:
    """The best point, or for several metrics the front, among those that ran with the most seeds."""
    scored = scores(trials, list(metrics))
    most = max((score.seeds for score in scored), default=0)
    proven = [score for score in scored if score.seeds == most]
    if len(metrics) > 1:
        return pareto_front(proven, metrics)
    ((metric, mode),) = metrics.items()
    winner = best(proven, metric, mode)
    return [] if winner is None else [winner]


def _score(trials: Sequence[Trial], metrics: Sequence[str]) -> Score:
    values = {name: [trial.metrics[name] for trial in trials] for name in metrics}
    return Score(
        trials[0].point,
        {name: statistics.fmean(of) for name, of in values.items()},
        {name: statistics.stdev(of) if len(of) > 1 else 0.0 for name, of in values.items()},
        tuple(trials),
    )
