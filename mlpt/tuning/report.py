"""What a sweep tells and leaves: a line for each trial, `trials.parquet`, the winners as recipes, and a table."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from rich.table import Table

from mlpt.errors import UserError
from mlpt.reporting.text import plain_console, say, show_table
from mlpt.tuning.ranking import Mode, Score, Trial, scores
from mlpt.tuning.space import Space

_METRIC_PREFIXES = ("dev/", "held_out/", "sparsity", "latency")
Say = Callable[[str], None]


class ProgressLines(tune.Callback):
    """One line on standard error for every trial that ends. Tune keeps it with the sweep, so it holds plain values."""

    def __init__(self, metrics: Mapping[str, Mode]):
        self._metrics = dict(metrics)
        self._ended = 0

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Say how far it got and what it scored."""
        last = trial.last_result
        scored = ", ".join(f"{name} {last[name]:.4f}" for name in self._metrics if name in last)
        early = "" if last.get("tokens", 0) >= last.get("budget", 0) else ", stopped early"
        what = f"{scored} after {last.get('tokens', 0):,} tokens{early}"
        self._line(trial, f"failed: {last['error']}" if "error" in last else what)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Say that its retries are used up."""
        self._line(trial, f"crashed {trial.num_failures} times and was given up; see {trial.path}/error.txt")

    def _line(self, trial: TuneTrial, what: str) -> None:
        self._ended += 1
        point = _words(trial.config["point"])
        say(f"trial {self._ended}: {what}  [{point} seed={trial.config['seed']}]", plain_console(stderr=True))


def finished_trials(results: tune.ResultGrid, space: Space) -> list[Trial]:
    """Tune's results as plain values. A trial that its scheduler ended has fewer tokens than its budget."""
    return [_trial(results[at], space) for at in range(len(results))]


def _trial(result: Any, space: Space) -> Trial:
    last = result.metrics or {}
    error = last.get("error") or (None if result.error is None else str(result.error).strip().splitlines()[-1])
    done = last.get("tokens", 0) >= last.get("budget", float("inf"))
    metrics = {name: float(value) for name, value in last.items() if name.startswith(_METRIC_PREFIXES)}
    return Trial(
        trial_id=last.get("trial_id", ""),
        point=result.config["point"],
        settings=space.settings(result.config["point"]),
        seed=result.config["seed"],
        metrics={} if error else metrics,
        tokens=int(last.get("tokens", 0)),
        seconds=float(last.get("seconds", 0.0)),
        status="failed" if error else "finished" if done else "stopped early",
        error=error,
        run_dir=last.get("run_dir", ""),
    )


def write_outcome(
    folder: Path,
    space: Space,
    trials: Sequence[Trial],
    winners: Sequence[Score],
    recipes: Sequence[str],
    follow_up: str,
    say: Say,
) -> None:
    """Write the winners' recipes and `trials.parquet` into `folder`, show the table and the command to go on with."""
    paths = _write_recipes(folder, space, winners, recipes) if winners else []
    pq.write_table(pa.Table.from_pylist(_rows(trials)), folder / "trials.parquet")
    show_table(_table(space, trials, winners))
    for trial in trials:
        if trial.status == "failed":
            say(f"failed: {_words(trial.point)} seed {trial.seed}: {trial.error}")
    if not winners:
        say(f"no trial reached the end, so there is no best recipe; see {folder / 'trials.parquet'}")
        return
    say(f"trials:  {folder / 'trials.parquet'}")
    say(f"best:    {', '.join(map(str, paths))}")
    say(f"next:    {follow_up.format(shlex.quote(str(paths[0])))}")


def require_success(trials: Sequence[Trial], folder: Path) -> None:
    """Raise `UserError` where every trial failed: a sweep that found nothing out is not a success."""
    if trials and all(trial.status == "failed" for trial in trials):
        raise UserError(
            f"every trial failed ({len(trials)} of {len(trials)}), the first with: {trials[0].error}; see "
            f"{folder / 'trials.parquet'}"
        )


def _write_recipes(folder: Path, space: Space, winners: Sequence[Score], recipes: Sequence[str]) -> list[Path]:
    paths = [folder / "best.yaml"]
    if len(space.metrics) > 1:
        (folder / "front").mkdir(exist_ok=True)
        paths = [folder / "front" / f"{at}.yaml" for at in range(1, len(winners) + 1)]
    for path, winner, recipe in zip(paths, winners, recipes, strict=True):
        seeds = "1 seed" if winner.seeds == 1 else f"{winner.seeds} seeds"
        path.write_text(f"# {space.question}\n# {_measured(winner)} over {seeds}: {_words(winner.point)}\n{recipe}")
    return paths


def _rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    parameters = sorted({name for trial in trials for name in trial.point})
    metrics = sorted({name for trial in trials for name in trial.metrics})
    columns = {name: _column([trial.point.get(name) for trial in trials]) for name in parameters}
    return [
        {
            "trial_id": trial.trial_id,
            "status": trial.status,
            "error": trial.error,
            "seed": trial.seed,
            "tokens": trial.tokens,
            "seconds": trial.seconds,
            "run_dir": trial.run_dir,
            **{f"parameter/{name}": columns[name][at] for name in parameters},
            **{name: trial.metrics.get(name) for name in metrics},
        }
        for at, trial in enumerate(trials)
    ]


def _column(values: Sequence[Any]) -> list[Any]:
    """A parameter's values in the table. Lists and mappings are JSON there, and all of them where their types differ:
    a column has one type."""
    there = [value for value in values if value is not None]
    of_one_type = (
        all(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for value in there)
        for kind in (str, bool, int | float)
    )
    if any(of_one_type):
        return list(values)
    return [None if value is None else json.dumps(value) for value in values]


def _table(space: Space, trials: Sequence[Trial], winners: Sequence[Score]) -> Table:
    table = Table(title=f"{space.name}: means over seeds, ± their standard deviation")
    for heading in ("", *space.metrics, "seeds", "point"):
        table.add_column(heading)
    ranked = sorted(
        scores(trials, list(space.metrics)),
        key=lambda score: (-score.seeds, score.means[space.metric] * (1 if space.mode == "min" else -1)),
    )
    winning = [winner.point for winner in winners]
    for score in ranked:
        mark = "*" if score.point in winning else ""
        figures = [_figure(score, name) for name in space.metrics]
        table.add_row(mark, *figures, str(score.seeds), _words(score.point))
    return table


def _measured(score: Score) -> str:
    return ", ".join(f"{name} {_figure(score, name)}" for name in score.means)


def _figure(score: Score, name: str) -> str:
    """Mean and spread; one seed has no spread."""
    spread = f" ± {score.spreads[name]:.4f}" if score.seeds > 1 else ""
    return f"{score.means[name]:.4f}{spread}"


def _words(point: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()
    )
