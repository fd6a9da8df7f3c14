"""`mlpt tune`: many runs of one space, side by side on one Ray; the best points again with more seeds; tables and recipes.

A sweep's folder holds `sweep.yaml` (what was asked), `trials/` (a run each), `tune/` (Ray Tune's own state, from which
`--resume` goes on), `trials.parquet`, and `best.yaml` or `front/`: recipes that `mlpt pretrain` takes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import Field
from ray import tune

from mlpt.config import RunConfig
from mlpt.errors import UserError
from mlpt.runtime.cluster import ray_session
from mlpt.runtime.placement import concurrency, driver_environment, needs_of_a_trial, require_dashboard, trial_resources
from mlpt.runtime.ranking import Score, Trial, best, pareto_front, scores
from mlpt.runtime.searching import a_point, make_scheduler, make_search, number_of_trials, parameter_space, repeated
from mlpt.runtime.space import Scheduler, Search, Space, load_space
from mlpt.runtime.sweep_report import ProgressLines, finished_trials, write_outcome
from mlpt.runtime.trial import Plan, budgeted, nested_run, run_trial, trial_config
from mlpt.settings import Settings, load_settings, parse_overrides

SWEEP = "sweep.yaml"
Say = Callable[[str], None]


class SweepConfig(Settings):
    """Words of `mlpt tune` that begin with `sweep.`; null: as the space says.

    concurrent  trials at a time; null: as many as the cluster holds now. Needed where a cluster starts from zero nodes.
    retries     crashes of a trial (not errors of its settings) after which it is started again, from its checkpoint.
    folder      where the sweep lives; null: a new folder under runs/.
    """

    trials: int | None = Field(None, gt=0)
    tokens: int | None = Field(None, gt=0)
    seeds: int | None = Field(None, gt=0)
    finalists: int | None = Field(None, gt=0)
    evaluations: int | None = Field(None, gt=0)
    search: Search | None = None
    scheduler: Scheduler | None = None
    concurrent: int | None = Field(None, gt=0)
    retries: int = Field(2, ge=0)
    seed: int = 0
    folder: str | None = None

    def applied(self, space: Space) -> Space:
        """`space` with the options that were given."""
        options = ("trials", "tokens", "seeds", "finalists", "evaluations", "search", "scheduler")
        return space.changed(**{name: value for name in options if (value := getattr(self, name)) is not None})


@dataclass(frozen=True)
class Sweep:
    """One sweep as asked for: the space with its options, and the user's settings for every trial."""

    space: Space
    options: SweepConfig
    overrides: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What a sweep found. `winners`: the best point, or the front; empty when no trial reached the end."""

    folder: Path
    trials: list[Trial]
    winners: list[Score]


def start_sweep(name: str, words: Sequence[str], say: Say, debug: bool = False) -> Outcome:
    """Run the space called (or in the file) `name`; `words` are `key=value` settings of the trials or of the sweep."""
    sweep = _asked_for(name, words, None)
    try:
        sweep.folder.mkdir(parents=True, mode=0o700)
        asked = {"space": str(Path(name).resolve()) if name.endswith(".py") else name, "words": list(words)}
        (sweep.folder / SWEEP).write_text(yaml.safe_dump(asked))
    except FileExistsError as error:
        raise UserError(f"{sweep.folder} exists; `mlpt tune --resume {sweep.folder}`, or another sweep.folder") from error
    except OSError as error:
        raise UserError(f"cannot make {sweep.folder} ({error.strerror}); choose another sweep.folder") from error
    return _run(sweep, say, debug)


def resume_sweep(folder: str, say: Say, debug: bool = False) -> Outcome:
    """Go on with the sweep in `folder`: finished trials stay, others go on from their checkpoints, failed ones retry."""
    path = Path(folder).expanduser().resolve()
    if not (path / SWEEP).is_file():
        raise UserError(f"{path} holds no sweep: it has no {SWEEP}")
    asked = yaml.safe_load((path / SWEEP).read_text())
    return _run(_asked_for(asked["space"], asked["words"], path), say, debug)


def _asked_for(name: str, words: Sequence[str], folder: Path | None) -> Sweep:
    given = parse_overrides(words)
    options = load_settings(SweepConfig, given.pop("sweep", None) or {}, "sweep")
    space = options.applied(load_space(name))
    if folder is None:
        named = Path.cwd() / "runs" / f"tune-{space.name}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = Path(options.folder).expanduser().resolve() if options.folder else named
    return Sweep(space, options, given, folder)


def _run(sweep: Sweep, say: Say, debug: bool) -> Outcome:
    space = sweep.space
    sample = trial_config(space, sweep.overrides, a_point(space), sweep.options.seed)  # wrong settings show here
    _check_metrics(space, sample)
    say(f"{space.name}: {space.question}")
    is_nested = sample.runtime.most_workers > 1
    environment = driver_environment(sample.runtime) if is_nested else {}
    with ray_session(sample.runtime, os.cpu_count() or 1, debug, dashboard=is_nested, environment=environment):
        if is_nested:
            require_dashboard()
        blocks = _prepare(sample, sweep, say)
        plan = Plan(space, sweep.overrides, blocks.path, sweep.folder, blocks.block_size, is_nested)
        at_once = concurrency(sample.runtime, number_of_trials(space), sweep.options.concurrent, say)
        tokens = budgeted(sample, space, blocks.block_size, plan.pausing).train.steps
        tokens *= sample.train.batch_size * blocks.block_size
        found = _search(sweep, plan, sample, at_once, tokens, say)
        found += _confirm(sweep, plan, sample, at_once, found, say)
    winners = _winners(space, found)
    outcome = Outcome(sweep.folder, found, winners)
    write_outcome(space, outcome, lambda point, seed: trial_config(space, sweep.overrides, point, seed), say)
    return outcome
