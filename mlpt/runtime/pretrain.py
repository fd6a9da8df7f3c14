"""`mlpt pretrain`: Ray Train workers run the loop, a Ray actor learns the policy, the driver shows what happens."""

from functools import partial
from pathlib import Path
from typing import Any

from mlpt.config import RunConfig, RuntimeConfig
from mlpt.errors import UserError
from mlpt.reporting.display import Display
from mlpt.run.build import learns
from mlpt.run.folder import RunDir
from mlpt.runtime.cluster import check_cores, check_resources, needed_cpus, ray_session, where
from mlpt.runtime.hub import Relay
from mlpt.runtime.meta_actor import create_actor, end_actor
from mlpt.runtime.rank import train_rank
from mlpt.runtime.trainer import CONTROLLER_FAILURES, fit, forget, make_hub, make_trainer, start_timeout, why_failed
from mlpt.stopping import RunStopped, StopRequest
from mlpt.storage.mirror import Remote

_RESTART_S = 300.0  # that ranks may take from their end to the next ones' first sign of life
_PLACINGS = CONTROLLER_FAILURES + 1  # how often Ray Train looks for a place


def pretrain_on_ray(
    config: RunConfig,
    blocks: str,
    run_dir: Path,
    display: Display,
    debug: bool = False,
    remote: Remote | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Run `config` on prepared `blocks` from the newest checkpoint in `run_dir`, or from the start; the summary.

    A `remote` run needs no folder that all nodes see: each node has its own, and `run_dir` is the driver's.
    Raises `UserError` for what the user can put right; training resumes where it was after that. Raises `RunStopped`
    when `stop` asked for it and everything is saved.
    """
    runtime, run = config.runtime, RunDir(run_dir, remote)
    if runtime.address == "local":
        check_cores(runtime.least_workers, runtime.cpus_per_worker, "runtime.num_workers or runtime.cpus_per_worker")
    display.doing(where(runtime))
    learners = config.meta.replicas if learns(config) else 0
    cpus = needed_cpus(runtime, learners)
    with ray_session(runtime, cpus, debug, way_on=partial(run.way_on, stays=True), stop=stop):
        check_resources(runtime, learners, display.say)
        display.doing(f"starting {_workers(runtime)}{' and the meta-learner' if learns(config) else ''}")
        return _on_ray(config, blocks, run_dir, display, remote, stop)


def _workers(runtime: RuntimeConfig) -> str:
    return "1 worker" if runtime.num_workers == 1 else f"up to {runtime.most_workers} workers"


def _on_ray(
    config: RunConfig,
    blocks: str,
    run_dir: Path,
    display: Display,
    remote: Remote | None,
    stop: StopRequest | None,
) -> dict[str, Any]:
    numbers = range(config.meta.replicas if learns(config) else 0)
    actors = {number: create_actor(config, blocks, run_dir, remote, replica=number) for number in numbers}
    runtime = config.runtime
    hub = make_hub(runtime)
    settings = {
        "config": config.model_dump(),
        "blocks": blocks,
        "run_dir": str(run_dir),
        "remote": remote,
        "actor": actors.get(0),
        "replicas": {number: actor for number, actor in actors.items() if number},
        "hub": hub,
    }
    trainer = make_trainer(train_rank, settings, runtime, run_dir)
    try:
        with Relay(hub, display) as relay:
            result = fit(trainer, hub, stop, partial(_given_up, runtime, relay))
    except Exception as error:
        run = RunDir(run_dir, remote)
        raise why_failed(error, hub, f"see {run.name}/logs, then {run.way_on(stays=True)}") from error
    finally:
        for actor in actors.values():
            end_actor(actor, remote)
        forget(run_dir)
    outcome: dict[str, Any] = result.return_value
    if "error" in outcome:
        raise UserError(outcome["error"])
    if "stopped" in outcome:
        raise RunStopped(outcome["stopped"])
    return outcome


def _given_up(runtime: RuntimeConfig, relay: Relay) -> str | None:
    """Why nothing is to be expected of a group any more that neither ends nor is heard of; None while something is.

    Ray itself hangs then: its controller is stopped, or a worker that it waits for while the group starts.
    """
    if runtime.hang_timeout is None:
        return None
    places = 0 if runtime.address == "local" else _PLACINGS * start_timeout(runtime)
    if relay.silence < runtime.hang_timeout + _RESTART_S + places:
        return None
    return f"no worker has been heard of for {relay.silence:.0f} s, and Ray does not say why"
