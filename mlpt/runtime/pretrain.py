"""`mlpt pretrain`: Ray Train workers run the loop, a Ray actor learns the policy, the driver shows what happens."""

import contextlib
import json
import logging
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
from mlpt.runtime.loopback import LoopbackTorchConfig
from mlpt.runtime.meta_actor import ActorSource, create_actor, end_actor, may_have_spare
from mlpt.stopping import RunStopped, Stopped, StopRequest
from mlpt.storage.mirror import Remote, fetch_log, send_log, working_folder
from mlpt.training.group import Group
from mlpt.training.loop import Event

_SIGNAL_POLL_S = 0.2
_STOP_POLL_S = 0.5
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
    with ray_session(runtime, needed_cpus(runtime, learns(config)), debug, resume=f"`{resume_command(run)}`"):
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
    hub = ray.remote(num_cpus=0)(Hub).options(scheduling_strategy=_this_node()).remote()
    runtime = config.runtime
    on_gpus = runtime.gpus_per_worker > 0
    resources = {"CPU": runtime.cpus_per_worker, **runtime.worker_resources}
    resources |= {"GPU": runtime.gpus_per_worker} if on_gpus else {}
    elastic = not isinstance(runtime.num_workers, int)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(runtime.start_timeout or (60 if elastic else 900))
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
            failure_config=FailureConfig(max_failures=runtime.max_failures, controller_failure_limit=3),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with _Relay(hub, display):
            result = trainer.fit() if stop is None else _fit(trainer, hub, stop)
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


def _fit(trainer: TorchTrainer, hub: Any, stop: StopRequest) -> Any:
    """`trainer.fit()` in a thread, because in the main one Ray takes SIGINT for itself and aborts the run.

    Workers that train hear of a signal through the hub and end; before there are any, the signal ends the wait.
    """
    results: SimpleQueue[Any] = SimpleQueue()

    def fit() -> None:
        try:
            results.put(trainer.fit())
        except BaseException as error:  # raised where the run can end
            results.put(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    told = False
    with stop.training():
        thread.start()
        while thread.is_alive():
            thread.join(_SIGNAL_POLL_S)
            if stop() and not told:
                told = True
                if not ray.get(hub.stop.remote()):
                    raise Stopped(stop.number)
    result = results.get()
    if isinstance(result, BaseException):
        raise result
    return result


def _train_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    context = ray.train.get_context()
    rank, remote, hub = context.get_world_rank(), settings["remote"], settings["hub"]
    run_dir = working_folder(settings["run_dir"], remote)
    log = run_dir / "logs" / f"rank_{rank}.log"
    fetch_log(remote, log)
    log_to_file(log)
    config = RunConfig.model_validate(settings["config"])
    earlier = ray.get(hub.error.remote())
    if earlier is not None:  # another rank said what is wrong before the group was restarted
        return {"error": earlier}
    torch.set_num_threads(threads_of(config.runtime.cpus_per_worker))
    group = Group(rank, context.get_world_size(), get_device())
    source = None
    if rank == 0 and settings["actor"] is not None:
        create = partial(create_actor, config, settings["blocks"], run_dir, remote)
        source = ActorSource(settings["actor"], create, partial(create, spare=True) if may_have_spare(config) else None)
    try:
        _log.info("rank %d of %d on %s, process %d", rank, group.world, group.device, os.getpid())
        tell, must_save = _teller(hub), _preemption_notice(config)
        with _stop_notice(hub, rank) as should_stop:
            return run_rank(
                config, settings["blocks"], run_dir, group, source, tell, must_save, should_stop, remote=remote
            )
    except RunStopped as stopped:
        return {"stopped": stopped.step}
    except Exception as error:
        said = _for_people(error, str(run_dir) if remote is None else remote.uri)
        if said is None:
            _log.exception("rank %d failed", rank)
            raise
        _log.error("%s", said)
        ray.get(hub.fail.remote(said))
        if group.world == 1:
            return {"error": said}
        raise  # the other ranks wait in a collective: only a restart of the group frees them
    finally:
        send_log(remote, log)


def _for_people(error: Exception, run: str) -> str | None:
    """The line about an error that a restart of the group would only meet again; None for any other."""
    if isinstance(error, UserError):
        return str(error)
    trouble = system_error(error)
    if trouble is None or not is_lasting(trouble):
        return None
    return told(trouble, f"`{resume_command(run)}`")


class Hub:
    """A mailbox between rank 0 and the driver: events in order, the error that ended the run, a wish to stop it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._error: str | None = None
        self._trains = False
        self._stopping = False

    def push(self, event: Event) -> None:
        self._trains = True
        self._events.append(event)

    def drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def fail(self, error: str) -> None:
        self._error = self._error or error

    def error(self) -> str | None:
        return self._error

    def stop(self) -> bool:
        """Ask the run to stop; False if there is no worker yet that could hear it."""
        self._stopping = True
        return self._trains

    def stopping(self) -> bool:
        """Asked by a worker: whether the run shall stop."""
        self._trains = True
        return self._stopping


def _this_node() -> NodeAffinitySchedulingStrategy:
    """Where the driver is, which may outlive every other node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class _Relay:
    """A driver thread that shows the hub's events while `fit` holds the main thread."""

    def __init__(self, hub: Any, display: Display):
        self._hub, self._display = hub, display
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        stopping = False
        while True:
            try:
                for event in ray.get(self._hub.drain.remote(), timeout=60):
                    self._display.handle(event)
            except ray.exceptions.GetTimeoutError:
                continue  # a busy machine
            except ray.exceptions.RayError:
                return  # Ray is going away; `fit` says why
            if stopping:
                return
            stopping = self._stop.wait(0.3)


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
