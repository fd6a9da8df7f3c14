"""From a space to Ray Tune's searcher and scheduler. Budgets count tokens or evaluations, never seconds."""

from typing import Any

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.sample import Domain

from mlpt.errors import UserError, one_line
from mlpt.tuning.space import Space, is_grid

# Hyperband and PBT pause trials and go on with them later, from a checkpoint that Tune holds.
PAUSING = ("hyperband", "pbt")


def make_search(space: Space, seed: int, at_once: int) -> Searcher | SearchAlgorithm:
    """Random and grid points come from Tune itself; TPE, and NSGA-II for several metrics, from Optuna.

    At most `at_once` trials are under way: Tune's own limit counts for searchers like Optuna's alone. Schedulers that
    pause trials need all of them, and Tune's resources say how many of those train.
    """
    if space.search != "tpe":
        limit = 0 if space.scheduler in PAUSING else at_once
        first = [{"point": point} for point in space.first]
        return BasicVariantGenerator(first, random_state=seed, constant_grid_search=True, max_concurrent=limit)
    searcher = _optuna(space, seed)
    return searcher if space.scheduler in PAUSING else ConcurrencyLimiter(searcher, at_once)


def _optuna(space: Space, seed: int) -> Searcher:
    try:
        import optuna
    except ImportError as error:
        raise UserError("search=tpe needs Optuna: pip install optuna, or choose search=random") from error
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna knows a point's parameters by their whole names in what Tune draws a trial's configuration from.
    first = [{f"point/{name}": value for name, value in point.items()} for point in space.first]
    if len(space.metrics) == 1:
        return OptunaSearch(metric=space.metric, mode=space.mode, seed=seed, points_to_evaluate=first)
    sampler = optuna.samplers.NSGAIISampler(population_size=max(4, space.trials // 3), seed=seed)
    metrics, modes = list(space.metrics), list(space.metrics.values())
    return OptunaSearch(metric=metrics, mode=modes, sampler=sampler, points_to_evaluate=first)


def make_scheduler(space: Space, tokens: int) -> TrialScheduler:
    """Who stops early. `tokens` is what a whole trial trains on; its reports lie at equal distances in tokens."""
    if space.scheduler == "asha":
        first = max(1, tokens // space.evaluations)
        return ASHAScheduler("tokens", max_t=tokens, grace_period=first, reduction_factor=3, stop_last_trials=False)
    if space.scheduler == "hyperband":
        # In evaluations: brackets that start at one token would want millions of trials.
        return HyperBandScheduler("evaluations", max_t=space.evaluations, reduction_factor=3, stop_last_trials=False)
    if space.scheduler == "pbt":
        return PopulationBasedTraining(
            "evaluations",
            perturbation_interval=max(1, space.evaluations // 3),
            hyperparam_mutations={"point": {key: space.parameters[key] for key in space.mutable}},
        )
    return FIFOScheduler()


def a_point(space: Space) -> dict[str, Any]:
    """One point of the space, to find out before anything starts whether its settings make sense.

    Raises `UserError` for a parameter of which nothing can be drawn.
    """
    point = {}
    for key, domain in space.parameters.items():
        try:
            point[key] = _sample(domain)
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"space '{space.name}': no value of '{key}' can be drawn ({one_line(error)})") from error
    return point


def number_of_trials(space: Space) -> int:
    """How many trials the search makes: points, times the size of the grid."""
    size = 1
    for domain in space.parameters.values():
        if is_grid(domain):
            size *= len(domain["grid_search"])
    return space.trials * size


def parameter_space(space: Space, seed: int) -> dict[str, Any]:
    """What Tune draws each trial's configuration from."""
    return {"point": dict(space.parameters), "seed": seed}


def repeated(points: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """Every point with every seed."""
    return {"point": tune.grid_search(points), "seed": tune.grid_search(seeds)}


def _sample(domain: Any) -> Any:
    if is_grid(domain):
        return domain["grid_search"][0]
    return domain.sample() if isinstance(domain, Domain) else domain
