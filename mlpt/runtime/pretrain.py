"""`mlpt pretrain`: Ray Train workers run the loop, a Ray actor learns the policy, the driver shows what happens."""

import contextlib
import json
import logging
import math
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mlpt.config import RunConfig, RuntimeConfig
from mlpt.errors import CrashError, UserError, is_lasting, resume_command, system_error, told
from mlpt.logs import log_to_file
from mlpt.reporting.display import Display
from mlpt.run.build import learns, run_rank, threads_of
from mlpt.runtime.cluster import check_cores, check_resources, needed_cpus, ray_session, where
from mlpt.runtime.hangs import Watch
from mlpt.runtime.hub import Hub, Relay
from mlpt.runtime.loopback import LoopbackTorchConfig
from mlpt.runtime.meta_actor import (
    BUILD_S,
    START_TIMEOUT_S,
    ActorSource,
    create_actor,
    end_actor,
    may_have_spare,
)
from mlpt.stopping import RunStopped, Stopped, StopRequest
from mlpt.storage.mirror import Remote, fetch_log, send_log, working_folder
from mlpt.training.group import Group
from mlpt.training.loop import Event

_SIGNAL_POLL_S = 0.2
_STOP_POLL_S = 0.5
_HUB_TIMEOUT_S = 30.0
_ALIVE_S = 5.0
_RESTART_S = 300.0  # that ranks may take from their end to the next ones' first sign of life
_CONTROLLER_FAILURES = 3
_PLACINGS = _CONTROLLER_FAILURES + 1  # how often Ray Train looks for a place
_log = logging.getLogger(__name__)


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
        _train_rank,
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
                if not _asked(hub.stop.remote(), or_else=False):
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


def _asked(answer: Any, or_else: Any) -> Any:
    """What the hub answers; `or_else` where it hangs, which shall not be what a run waits for."""
    try:
        return ray.get(answer, timeout=_HUB_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        return or_else


def _train_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    context = ray.train.get_context()
    rank, remote, hub = context.get_world_rank(), settings["remote"], settings["hub"]
    run_dir = working_folder(settings["run_dir"], remote)
    log = run_dir / "logs" / f"rank_{rank}.log"
    fetch_log(remote, log)
    log_to_file(log)
    config = RunConfig.model_validate(settings["config"])
    earlier = _asked(hub.error.remote(), or_else=None)
    if earlier is not None:  # another rank said what is wrong before the group was restarted
        return {"error": earlier}
    torch.set_num_threads(threads_of(config.runtime.cpus_per_worker))
    group = Group(rank, context.get_world_size(), get_device())
    source = None
    if rank == 0 and settings["actor"] is not None:
        create = partial(create_actor, config, settings["blocks"], run_dir, remote)
        spare = partial(create, spare=True) if may_have_spare(config) else None
        patience = START_TIMEOUT_S if config.runtime.address != "local" else BUILD_S  # a cluster may have to grow first
        source = ActorSource(settings["actor"], create, spare, config.runtime.hang_timeout, patience)
    try:
        _log.info("rank %d of %d on %s, process %d", rank, group.world, group.device, os.getpid())
        tell, must_save = _teller(hub), _preemption_notice(config)
        with _stop_notice(hub, rank) as should_stop, _watched(config, hub, rank, log, remote) as watch:
            if source is not None:
                source.waiting = watch.beat
            return run_rank(
                config,
                settings["blocks"],
                run_dir,
                group,
                source,
                _beginning(tell, watch),
                must_save,
                _beating(should_stop, watch),
                remote=remote,
            )
    except RunStopped as stopped:
        return {"stopped": stopped.step}
    except Exception as error:
        said = _for_people(error, str(run_dir) if remote is None else remote.uri)
        if said is None:
            _log.exception("rank %d failed", rank)
            raise
        _log.error("%s", said)
        _asked(hub.fail.remote(said), or_else=None)
        if group.world == 1:
            return {"error": said}
        raise  # the other ranks wait in a collective: only a restart of the group frees them
    finally:
        send_log(remote, log)


@contextlib.contextmanager
def _watched(config: RunConfig, hub: Any, rank: int, log: Path, remote: Remote | None) -> Iterator[Watch]:
    """Watches the work of this rank while the block lasts, and lets the hub know that the process is there."""
    limit, done = config.runtime.hang_timeout, threading.Event()
    name = f"rank {rank} (process {os.getpid()})"

    def warn(text: str) -> None:
        hub.ending.remote(text)

    def group() -> float:
        hub.alive.remote(rank, os.getpid(), watch.still())
        return _asked(hub.still.remote(), or_else=math.inf)  # without the hub, each rank is on its own

    def report() -> None:
        while not done.wait(_ALIVE_S if limit is None else min(_ALIVE_S, limit / 4)):
            hub.alive.remote(rank, os.getpid(), watch.still())

    watch = Watch(limit, name, log, warn, group, slow_storage=remote is not None)
    watch.begin()
    threading.Thread(target=report, name="alive", daemon=True).start()
    try:
        with watch:
            yield watch
    finally:
        done.set()


def _beating(should_stop: Callable[[], bool], watch: Watch) -> Callable[[], bool]:
    """`should_stop`, which is asked in every step."""

    def asked() -> bool:
        watch.beat()
        return should_stop()

    return asked


def _beginning(tell: Callable[[Event], None], watch: Watch) -> Callable[[Event], None]:
    """`tell`, which hears of what is done before and after all steps."""

    def told(event: Event) -> None:
        if event["event"] == "doing":
            watch.begin()
        tell(event)

    return told


def _for_people(error: Exception, run: str) -> str | None:
    """The line about an error that a restart of the group would only meet again; None for any other."""
    if isinstance(error, UserError):
        return str(error)
    trouble = system_error(error)
    if trouble is None or not is_lasting(trouble):
        return None
    return told(trouble, f"`{resume_command(run)}`")


def _this_node() -> NodeAffinitySchedulingStrategy:
    """Where the driver is, which may outlive every other node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _teller(hub: Any) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        _log.info("%s", json.dumps(event))
        hub.push.remote(event)

    return tell


@contextlib.contextmanager
def _stop_notice(hub: Any, rank: int) -> Iterator[Callable[[], bool]]:
    """Whether the driver was asked to stop, as far as rank 0 has heard; a thread asks, so that no step waits for it."""
    heard, done = threading.Event(), threading.Event()

    def listen() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the driver is gone, and the run will end
            while not heard.is_set() and not done.wait(_STOP_POLL_S):
                if ray.get(hub.stopping.remote()):
                    heard.set()

    if rank == 0:
        threading.Thread(target=listen, name="stop", daemon=True).start()
    try:
        yield heard.is_set
    finally:
        done.set()


def _preemption_notice(config: RunConfig) -> Callable[[int], bool]:
    """Asks Ray now and then whether a node is about to be taken away: then there is just time for a checkpoint."""
    answered = False

    def must_save(step: int) -> bool:
        nonlocal answered
        if config.runtime.address == "local" or step % config.runtime.preemption_every:
            return False
        noticed = ray.train.get_preemption_info() is not None
        fresh = noticed and not answered
        answered = noticed
        return fresh

    return must_save


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
