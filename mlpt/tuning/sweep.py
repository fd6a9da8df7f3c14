"""`mlpt tune`: many runs of one space side by side on one Ray, the best points again with more seeds, tables, recipes.

A sweep's folder holds `sweep.yaml` (what was asked), `trials/` (a run each), `tune/` (Ray Tune's own state, from which
`--resume` goes on), `trials.parquet`, and `best.yaml` or `front/`: recipes that `mlpt pretrain` takes.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import ray
import yaml
from pydantic import Field
from ray import tune

from mlpt import outputs
from mlpt.config import WHOLE, RuntimeConfig
from mlpt.errors import UserError, command, told
from mlpt.run.local_paths import absolute_words
from mlpt.runtime.cluster import ray_session, where
from mlpt.settings import Settings, load_settings, parse_overrides
from mlpt.storage.files import check_room
from mlpt.storage.store import is_uri
from mlpt.tuning.kept import Keep, mend
from mlpt.tuning.placement import concurrency, require_dashboard, trial_needs, trial_resources, worker_environment
from mlpt.tuning.plan import Plan, Say
from mlpt.tuning.ranking import Score, Trial, pareto_front, scores, winning
from mlpt.tuning.report import ProgressLines, finished_trials, require_success, write_outcome
from mlpt.tuning.searching import a_point, make_scheduler, make_search, number_of_trials, parameter_space, repeated
from mlpt.tuning.space import Scheduler, Search, Space, load_space
from mlpt.tuning.trial import fitted_space, job_of, run_trial
from mlpt.yaml_text import read_yaml

SWEEP = "sweep.yaml"
# What Tune logs of each trial that crashes, and each time that its own state finds no room, in pages.
_TRACEBACKS = ("ray.tune.execution.tune_controller", "ray.tune.execution.experiment_state", "ray.tune.tune")


class SweepConfig(Settings):
    """Words of `mlpt tune` that begin with `sweep.`; null: as the space says.

    trials       points that are tried (with `grid`: passes over the grid).
    tokens       training budget of one trial, in tokens.
    seeds        seeds that each of the finalists runs with in the end.
    finalists    the best points of the search, which get the other seeds.
    evaluations  reports of each trial to the scheduler, at equal distances in tokens.
    search       how points are chosen: at random, by grid, or by Optuna's TPE.
    scheduler    who stops trials early, counted in tokens: nobody, ASHA, Hyperband; or PBT.
    concurrent   trials at a time; null: as many as the cluster holds now. For clusters that start from zero nodes.
    retries      crashes of a trial (not errors of its settings) after which it is started again, from its checkpoint.
    seed         of the search, and of each trial's first run.
    folder       where the sweep lives; null: a new folder under runs/.
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


def start_sweep(name: str, words: Sequence[str], say: Say, overwrite: bool = False, debug: bool = False) -> Outcome:
    """Run the space called (or in the file) `name`; `words` are `key=value` settings of the trials or of the sweep.

    overwrite  replace an earlier sweep in `sweep.folder`.
    """
    words = absolute_words(words)
    sweep = _asked_for(name, words, None)
    folder = outputs.check_folder(sweep.folder, outputs.SWEEP, overwrite, resumes=True)
    if not overwrite and outputs.is_there(folder, outputs.SWEEP):
        raise UserError(
            f"{folder} holds a sweep; `{_resume(folder)}`, replace it with --overwrite, or choose another sweep.folder"
        )
    _sample(sweep)  # before there is a folder
    with outputs.taken_folder(folder, outputs.SWEEP, overwrite, private=True):
        asked: dict[str, Any] = {"space": str(Path(name).resolve()) if name.endswith(".py") else name}
        asked |= {"words": words, "metrics": dict(sweep.space.metrics)}  # the metrics are for reports
        outputs.write_file(folder / SWEEP, yaml.safe_dump(asked).encode())
        return _run(sweep, say, debug)


def resume_sweep(folder: str, say: Say, debug: bool = False) -> Outcome:
    """Go on with the sweep in `folder`: finished trials stay, the others go on from their checkpoints."""
    path = outputs.absolute(folder)
    if not (path / SWEEP).is_file():
        raise UserError(f"{path} holds no sweep: it has no {SWEEP}")
    try:
        asked = read_yaml(path / SWEEP)
        name, words = str(asked["space"]), [str(word) for word in asked["words"]]
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path / SWEEP} is damaged and does not say which sweep this is") from error
    with outputs.alone_in(path, "end it"):
        return _run(_asked_for(name, words, path), say, debug)


def _asked_for(name: str, words: Sequence[str], folder: Path | None) -> Sweep:
    given = parse_overrides(words, whole=WHOLE)
    options = load_settings(SweepConfig, given.pop("sweep", None) or {}, "sweep")
    space = options.applied(fitted_space(load_space(name), given))
    if options.folder is not None and is_uri(options.folder):
        raise UserError(f"sweep.folder={options.folder}: a sweep lives in a folder that all nodes see, not at a URI")
    if folder is None:
        named = Path.cwd() / "runs" / f"tune-{space.name}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = outputs.absolute(options.folder) if options.folder else named
    return Sweep(space, options, given, folder)


def _run(sweep: Sweep, say: Say, debug: bool) -> Outcome:
    space, job = sweep.space, job_of(sweep.space)
    sample, runtime = _sample(sweep)
    say(f"{space.name}: {space.question}")
    is_nested = runtime.most_workers > 1
    environment = worker_environment(runtime) if is_nested else {}
    say(f"{where(runtime)} ...")
    resume = f"`{_resume(sweep.folder)}`"
    with ray_session(runtime, os.cpu_count() or 1, debug, is_nested, environment, lambda: resume):
        if is_nested:
            require_dashboard()
        data, length = job.data(sample, sweep.folder, say)
        plan = Plan(space, sweep.overrides, sweep.folder, runtime, data, length, trial_resources(runtime))
        at_once = _at_once(sweep, plan, say)
        tokens = job.budget(sample, space, length).tokens
        say(f"each trains on {tokens:,} tokens and is judged {space.evaluations} times, by {_goals(space)}")
        found = _search(sweep, plan, tokens, at_once)
        found += _confirm(sweep, plan, at_once, found, say)
    winners = winning(found, space.metrics)
    configs = [job.config(space, sweep.overrides, winner.point, sweep.options.seed) for winner in winners]
    recipes = [job.recipe(config, space, length) for config in configs]
    write_outcome(sweep.folder, space, found, winners, recipes, job.follow_up, say)
    require_success(found, sweep.folder)
    return Outcome(sweep.folder, found, winners)


def _sample(sweep: Sweep) -> tuple[Any, RuntimeConfig]:
    """A trial's configuration and what it takes of the cluster. Wrong settings show here, as `UserError`."""
    space, job = sweep.space, job_of(sweep.space)
    config = job.config(space, sweep.overrides, a_point(space), sweep.options.seed)
    runtime = job.runtime(config, sweep.overrides)
    job.check(space, config)
    return config, runtime


def _at_once(sweep: Sweep, plan: Plan, say: Say) -> int:
    """How many trials run at a time. Raises `UserError` where they would wait for each other for ever."""
    trials, wanted = number_of_trials(plan.space), sweep.options.concurrent
    fit = concurrency(trial_needs(plan.runtime), ray.cluster_resources(), trials, wanted, say)
    if plan.is_nested and plan.pausing and fit < trials:
        raise UserError(
            f"{plan.space.scheduler} pauses trials, and with several workers each all {trials} must fit at once, "
            f"not {fit}; use sweep.scheduler=asha, fewer trials, or runtime.num_workers=1"
        )
    return fit


def _search(sweep: Sweep, plan: Plan, tokens: int, at_once: int) -> list[Trial]:
    """The search itself: one seed, early stopping."""
    space = sweep.space
    several = len(space.metrics) > 1
    config = tune.TuneConfig(
        metric=None if several else space.metric,
        mode=None if several else space.mode,
        num_samples=space.trials,
        search_alg=make_search(space, sweep.options.seed, at_once),
        scheduler=make_scheduler(space, tokens),
        reuse_actors=not plan.is_nested,
    )
    return _tuned(sweep, plan, "search", parameter_space(space, sweep.options.seed), config)


def _confirm(sweep: Sweep, plan: Plan, at_once: int, found: list[Trial], say: Say) -> list[Trial]:
    """The best points again, to the end, with the other seeds: one lucky seed makes no winner."""
    space = sweep.space
    scored = sorted(scores(found, list(space.metrics)), key=lambda score: score.means[space.metric])
    ranked = scored if space.mode == "min" else scored[::-1]
    chosen = pareto_front(ranked, space.metrics) if len(space.metrics) > 1 else ranked[: space.finalists]
    if space.seeds == 1 or not chosen:
        return []
    seeds = [sweep.options.seed + more for more in range(1, space.seeds)]
    say(f"{len(chosen)} finalists with {len(seeds)} more seeds each")
    config = tune.TuneConfig(num_samples=1, max_concurrent_trials=at_once, reuse_actors=not plan.is_nested)
    points = repeated([dict(score.point) for score in chosen], seeds)
    return _tuned(sweep, plan, "seeds", points, config)


def _tuned(sweep: Sweep, plan: Plan, phase: str, points: dict[str, Any], config: tune.TuneConfig) -> list[Trial]:
    """One run of Ray Tune, or the rest of one that was interrupted."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints its tables at any verbosity
    for name in _TRACEBACKS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would end the search, and so go on to the next phase
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # a killed sweep forgets no more than this
    trainable = tune.with_resources(tune.with_parameters(run_trial, plan=plan), plan.resources)
    state = sweep.folder / "tune" / phase
    mend(state)
    if tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=True)
    else:
        run_config = tune.RunConfig(
            name=phase,
            storage_path=str(sweep.folder / "tune"),
            failure_config=tune.FailureConfig(max_failures=sweep.options.retries),
            callbacks=[ProgressLines(plan.space.metrics), Keep(str(state))],
            verbose=0,
        )
        tuner = tune.Tuner(trainable, param_space=points, tune_config=config, run_config=run_config)
    try:
        trials = finished_trials(tuner.fit(), plan.space)
    except Exception:  # Tune cannot read what it could not write
        _require_room(sweep)
        raise
    if any(trial.error is not None for trial in trials):
        _require_room(sweep)
    return trials


def _require_room(sweep: Sweep) -> None:
    """Raise `UserError` where the sweep's disk is full: what it said of trials says nothing about them then."""
    try:
        check_room(sweep.folder)
    except OSError as error:
        raise UserError(told(error, f"`{_resume(sweep.folder)}`")) from error


def _resume(folder: Path) -> str:
    return command("tune", "--resume", str(folder))


def _goals(space: Space) -> str:
    return " and ".join(f"{mode} {metric}" for metric, mode in space.metrics.items())
