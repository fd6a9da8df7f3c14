"""How many trials fit on a cluster at once, and what would make a sweep hang: each is one clear line here."""

import math
import os
from collections.abc import Callable, Mapping

import ray

from mlpt.config import RuntimeConfig
from mlpt.errors import UserError

# Of a nested trial: Tune wants something, and any part of a CPU would take the place of a worker. One byte.
_DRIVER = {"memory": 1.0}
_STATE_TIMEOUT_S = 20


def trial_resources(runtime: RuntimeConfig) -> dict[str, float]:
    """What Tune itself reserves for a trial: the whole run in process, next to nothing for a nested run's driver."""
    if runtime.most_workers > 1:
        return dict(_DRIVER)
    return {"CPU": runtime.cpus_per_worker} | ({"GPU": runtime.gpus_per_worker} if runtime.gpus_per_worker else {})


def trial_needs(runtime: RuntimeConfig) -> dict[str, float]:
    """Everything that a trial takes while it runs: for nested ones its workers and, as some may need it, a learner."""
    if runtime.most_workers == 1:
        return trial_resources(runtime)
    workers = runtime.most_workers
    needs = {
        "CPU": workers * runtime.cpus_per_worker + runtime.meta_cpus,
        "GPU": workers * runtime.gpus_per_worker + runtime.meta_gpus,
        **{name: workers * amount for name, amount in runtime.worker_resources.items()},
        **runtime.meta_resources,
    }
    return {name: amount for name, amount in needs.items() if amount}


def concurrency(
    needs: Mapping[str, float], have: Mapping[str, float], trials: int, wanted: int | None, say: Callable[[str], None]
) -> int:
    """How many of `trials` run at a time, said aloud. `wanted` counts for a cluster that will grow.

    Raises `UserError` when not one fits: Ray would wait for ever.
    """
    per_trial = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
    fits = math.floor(min(have.get(name, 0) / amount + 1e-9 for name, amount in needs.items()))
    if wanted is None and fits == 0:
        there = ", ".join(f"{have.get(name, 0):g} {name}" for name in needs)
        raise UserError(
            f"a trial needs {per_trial} and Ray has {there}; lower runtime.num_workers, cpus_per_worker or "
            "meta_cpus, or give sweep.concurrent=N on a cluster that grows when asked"
        )
    at_once = min(trials, wanted or fits)
    waiting = f"; {at_once - fits} of them wait for the cluster to grow" if at_once > fits else ""
    say(f"{trials} trials, {at_once} at a time ({per_trial} each){waiting}")
    return at_once


def require_dashboard() -> None:
    """Raise `UserError` unless Ray's state API answers: without it the workers of stopped trials are never freed."""
    from ray.util.state import list_nodes

    try:
        list_nodes(ray.get_runtime_context().gcs_address, limit=1, timeout=_STATE_TIMEOUT_S)
    except Exception as error:  # whatever the dashboard's client raises, the sweep would hang later
        raise UserError(
            "trials with several workers need Ray's dashboard, and it does not answer; start Ray with it "
            "(ray start --head --include-dashboard=true), or use runtime.num_workers=1"
        ) from error


def worker_environment(runtime: RuntimeConfig) -> dict[str, str]:
    """The variable that tells the workers of nested trials which cluster is theirs (our own Ray: `ray_session` does).

    Raises `UserError` where they could take another Ray of this machine for theirs, and leak what they hold.
    """
    if runtime.address == "local":
        return {}
    if runtime.address != "auto":
        return {"RAY_ADDRESS": runtime.address}
    if os.environ.get("RAY_ADDRESS"):
        return {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]}
    running = sorted(ray._private.services.find_gcs_addresses())
    if len(running) > 1:
        raise UserError(
            f"{len(running)} Rays run on this machine ({', '.join(running)}), and trials with several workers must "
            "know theirs; give runtime.address=HOST:PORT, or use runtime.num_workers=1"
        )
    return {"RAY_ADDRESS": running[0]} if running else {}
