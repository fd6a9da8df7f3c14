"""`mlpt pretrain`: Ray Train workers run the loop, a Ray actor learns the policy, the driver shows what happens."""

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mlpt.config import RunConfig, RuntimeConfig
from mlpt.errors import CrashError, UserError, resume_command
from mlpt.reporting.display import Display
from mlpt.run.build import learns
from mlpt.runtime.cluster import check_cores, check_resources, needed_cpus, ray_session, where
from mlpt.runtime.hub import Hub, Relay, asked
from mlpt.runtime.loopback import LoopbackTorchConfig
from mlpt.runtime.meta_actor import create_actor, end_actor
from mlpt.runtime.rank import train_rank
from mlpt.stopping import RunStopped, Stopped, StopRequest
from mlpt.storage.mirror import Remote

_SIGNAL_POLL_S = 0.2
_RESTART_S = 300.0  # that ranks may take from their end to the next ones' first sign of life
_CONTROLLER_FAILURES = 3
_PLACINGS = _CONTROLLER_FAILURES + 1  # how often Ray Train looks for a place


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
    runtime, run = config.runtime, str(run_dir) if remote is None else remote.uri
    if runtime.address == "local":
        check_cores(runtime.least_workers, runtime.cpus_per_worker, "runtime.num_workers or runtime.cpus_per_worker")
    display.doing(where(runtime))
    cpus, way_on = needed_cpus(runtime, learns(config)), f"`{resume_command(run)}`"
    with ray_session(runtime, cpus, debug, resume=way_on, stop=stop):
        if stop is not None:
            stop.listen()
        check_resources(runtime, learns(config), display.say)
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
    actor = create_actor(config, blocks, run_dir, remote) if learns(config) else None
    runtime = config.runtime
    hub = ray.remote(num_cpus=0)(Hub).options(scheduling_strategy=_this_node()).remote(runtime.hang_timeout)
    on_gpus = runtime.gpus_per_worker > 0
    resources = {"CPU": runtime.cpus_per_worker, **runtime.worker_resources}
    resources |= {"GPU": runtime.gpus_per_worker} if on_gpus else {}
    if runtime.hang_timeout is not None:  # for ranks that cannot notice it themselves, because they are stopped
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(runtime.hang_timeout)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_start_timeout(runtime))
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={
            "config": config.model_dump(),
            "blocks": blocks,
            "run_dir": str(run_dir),
            "remote": remote,
            "actor": actor,
            "hub": hub,
        },
        torch_config=LoopbackTorchConfig() if runtime.address == "local" else TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=runtime.num_workers,
            use_gpu=on_gpus,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=runtime.resize_every,
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex,  # Ray resumes runs of the same name silently; ours are resumed on request
            storage_path=str(run_dir / ".ray"),
            failure_config=FailureConfig(
                max_failures=runtime.max_failures, controller_failure_limit=_CONTROLLER_FAILURES
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with Relay(hub, display) as relay:
            result = _fit(trainer, hub, stop, partial(_given_up, runtime, relay))
    except Exception as error:
        raise _why_failed(error, hub, str(run_dir) if remote is None else remote.uri) from error
    finally:
        if actor is not None:
            end_actor(actor, remote)
        shutil.rmtree(run_dir / ".ray", ignore_errors=True)
    outcome: dict[str, Any] = result.return_value
    if "error" in outcome:
        raise UserError(outcome["error"])
    if "stopped" in outcome:
        raise RunStopped(outcome["stopped"])
    return outcome


def _fit(trainer: TorchTrainer, hub: Any, stop: StopRequest | None, given_up: Callable[[], str | None]) -> Any:
    """`trainer.fit()` in a thread, because in the main one Ray takes SIGINT for itself and aborts the run.

    Workers that train hear of a signal through the hub and end; before there are any, the signal ends the wait. So does
    what `given_up` says.
    """
    results: SimpleQueue[Any] = SimpleQueue()

    def fit() -> None:
        try:
            results.put(trainer.fit())
        except BaseException as error:  # raised where the run can end
            results.put(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    told = False
    with contextlib.nullcontext() if stop is None else stop.training():
        thread.start()
        while thread.is_alive():
            thread.join(_SIGNAL_POLL_S)
            if (why := given_up()) is not None:
                raise TimeoutError(why)
            if stop is not None and stop() and not told:
                told = True
                if not asked(hub.stop.remote(), or_else=False):
                    raise Stopped(stop.number)
    result = results.get()
    if isinstance(result, BaseException):
        raise result
    return result


def _given_up(runtime: RuntimeConfig, relay: Relay) -> str | None:
    """Why nothing is to be expected of a group any more that neither ends nor is heard of; None while something is.

    Ray itself hangs then: its controller is stopped, or a worker that it waits for while the group starts.
    """
    if runtime.hang_timeout is None:
        return None
    places = 0 if runtime.address == "local" else _PLACINGS * _start_timeout(runtime)
    if relay.silence < runtime.hang_timeout + _RESTART_S + places:
        return None
    return f"no worker has been heard of for {relay.silence:.0f} s, and Ray does not say why"


def _start_timeout(runtime: RuntimeConfig) -> float:
    return runtime.start_timeout or (900 if isinstance(runtime.num_workers, int) else 60)


def _this_node() -> NodeAffinitySchedulingStrategy:
    """Where the driver is, which may outlive every other node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _why_failed(error: Exception, hub: Any, run: str) -> UserError:
    try:
        said = ray.get(hub.error.remote(), timeout=10)
    except ray.exceptions.RayError:
        said = None
    if said is not None:
        return UserError(said)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return CrashError(f"training failed: {reason}; see {run}/logs, then `{resume_command(run)}`")
