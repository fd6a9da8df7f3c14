"""Joining or starting Ray, quietly, and saying in one line what does not fit."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import ray
from ray._private import services, worker
from ray._private.utils import get_num_cpus  # what ray.init counts where it is not told

from mlpt.config import RuntimeConfig
from mlpt.errors import UserError
from mlpt.runtime.loopback import LOOPBACK, on_loopback
from mlpt.runtime.watchdog import watched
from mlpt.stopping import Stopped, StopRequest

_KNOCK_TIMEOUT_S = 10.0

# Ray reads these when it starts; what the user has set stays.
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # Ray waits so long for a rank that is stopped, and then kills it
}
_STARTS = 3
_NODE_S = 150.0
_PORT = "RAY_GCS_SERVER_PORT"  # read where Ray starts; ray.init has no argument for it


@contextlib.contextmanager
def ray_session(
    runtime: RuntimeConfig,
    cpus: float,
    debug: bool = False,
    nested: bool = False,
    environment: Mapping[str, str] | None = None,
    way_on: Callable[[], str] = lambda: "the same command",
    stop: StopRequest | None = None,
) -> Iterator[None]:
    """A Ray to run in: the one this process already has, a cluster, or one of our own, which ends with the block
    and listens on the loopback alone.

    cpus         logical CPUs of our own Ray; more than the machine has is fine, they are a count of places.
    nested       runs will start runs of their own. Ray then needs its dashboard, and its processes must know its
                 address, or it leaks the resources of those that are stopped.
    environment  variables that every process of the job gets.
    way_on       says what goes on with the work if Ray dies; that ends this process with one line and exit code 2,
                 or with that of the signal that `stop` has heard of.
    stop         hears signals; without it the first one raises `Stopped`.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    stop = stop or StopRequest(lambda text: None)
    quiet = contextlib.nullcontext() if debug else _without_a_raylets_log()
    with stop.listening(), quiet, _started(runtime, cpus, debug, nested, environment):
        try:
            stop.listen()
            with watched(way_on, stop):
                yield
        except KeyboardInterrupt as error:  # a call into Ray may make a plain one of ours
            if stop.signalled and not isinstance(error, Stopped):
                raise Stopped(stop.number) from error
            raise


@contextlib.contextmanager
def _started(
    runtime: RuntimeConfig, cpus: float, debug: bool, nested: bool, environment: Mapping[str, str] | None
) -> Iterator[None]:
    """The Ray of `ray_session`, which ends with the block."""
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": debug}
    try:
        if runtime.address == "local":
            options |= {"num_cpus": max(1, round(cpus)), "include_dashboard": nested}
            with on_loopback(), _known_address() if nested else contextlib.nullcontext(environment) as environment:
                _start(**_with(environment), **options)
        else:
            _knock(runtime.address)
            ray.init(address=runtime.address, **_with(environment), **options)
    except Exception as error:  # Ray raises plain ones, too
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if runtime.address == "local":
            raise UserError(f"Ray does not start on this machine ({first_line}); is it too busy? Try again") from error
        raise UserError(
            f"cannot reach Ray at runtime.address={runtime.address} ({first_line}); start one with `ray start --head`, "
            "or use runtime.address=local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _without_a_raylets_log() -> Iterator[None]:
    """Ray prints the end of the log of every raylet that has died, however quiet it was asked to be.

    It does so as soon as an agent of that raylet has told the GCS, which may be before `watched` has seen the death
    and said so in one line.
    """
    show = worker.print_to_stdstream

    def shown(message: dict[str, Any], **how: Any) -> None:
        if not any(line.startswith("Raylet is terminated") for line in message["lines"]):
            show(message, **how)

    worker.print_to_stdstream = shown
    try:
        yield
    finally:
        worker.print_to_stdstream = show


def _start(**options: Any) -> None:
    """A Ray of our own. Ray itself gives its raylet 30 s to be known; it gets as long as a busy machine takes."""
    for attempt in range(_STARTS):
        earlier = psutil.Process().children(recursive=True)
        try:
            with _waiting_for_the_node():
                ray.init(address="local", **options)
            return
        except Exception as error:  # Ray raises plain ones
            if "timed out during startup" not in str(error) or attempt == _STARTS - 1:
                raise
            for process in psutil.Process().children(recursive=True):
                if process not in earlier:
                    with contextlib.suppress(psutil.Error):
                        process.kill()


@contextlib.contextmanager
def _waiting_for_the_node() -> Iterator[None]:
    """Ray's question for its own node, which it asks for 30 s, is answered no sooner than there is an answer."""
    ask = services.get_node

    def get_node(*place: Any) -> Any:
        deadline = time.monotonic() + _NODE_S
        while True:
            try:
                return ask(*place)
            except RuntimeError:  # not known yet
                if time.monotonic() > deadline or not _has_raylet():
                    raise
                time.sleep(0.1)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = ask


def _has_raylet() -> bool:
    """Whether a raylet that this process has started is there."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def where(runtime: RuntimeConfig) -> str:
    """What `ray_session` is about to do, for people who wait for it."""
    return "starting Ray on this machine" if runtime.address == "local" else f"joining Ray at {runtime.address}"


def _with(environment: Mapping[str, str] | None) -> dict[str, Any]:
    return {"runtime_env": {"env_vars": dict(environment)}} if environment else {}


@contextlib.contextmanager
def _known_address() -> Iterator[dict[str, str]]:
    """Fix the address of the Ray that starts in this block; yields the variable that tells it to the processes.

    A job's variables are set before Ray could tell its address, and processes without it take another Ray for theirs.
    """
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    os.environ[_PORT] = str(port)
    try:
        yield {"RAY_ADDRESS": f"{LOOPBACK}:{port}"}
    finally:
        del os.environ[_PORT]


def _knock(address: str) -> None:
    """Raise `OSError` where nothing listens at HOST:PORT: Ray would try for minutes, and then end the process."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_TIMEOUT_S).close()


def needed_cpus(runtime: RuntimeConfig, learners: int = 0) -> float:
    """Logical CPUs that a run asks for: its workers and, when something is learned, the meta-learner's replicas.

    Elastic workers ask for no more than this machine has, where Ray is our own.
    """
    workers = runtime.most_workers * runtime.cpus_per_worker
    if runtime.address == "local" and not isinstance(runtime.num_workers, int):
        least = runtime.least_workers * runtime.cpus_per_worker
        workers = min(workers, max(least, get_num_cpus()))
    return workers + learners * runtime.meta_cpus


def check_cores(workers: int, cpus_each: float, lower: str) -> None:
    """Raise `UserError` where our own Ray would start more workers than this machine has CPUs for.

    The meta-learner may share a core with them. lower: the setting to lower.
    """
    have, needed = get_num_cpus(), workers * cpus_each
    if needed > have:
        who = "1 worker needs" if workers == 1 else f"{workers} workers need"
        raise UserError(f"{who} {needed:g} CPUs and this machine has {have}; lower {lower}")


def check_resources(runtime: RuntimeConfig, learners: int, say: Callable[[str], None]) -> None:
    """Compare what the run needs with what Ray has.

    Raises `UserError` where it can never fit (our own Ray); on a cluster, which may grow, `say` is told of the wait.
    """
    have = ray.cluster_resources()
    least = runtime.least_workers
    needs = {
        "CPU": least * runtime.cpus_per_worker + learners * runtime.meta_cpus,
        "GPU": least * runtime.gpus_per_worker + learners * runtime.meta_gpus,
        **{name: least * amount for name, amount in runtime.worker_resources.items()},
        **{name: learners * amount for name, amount in runtime.meta_resources.items()},
    }
    for name, amount in needs.items():
        if amount > have.get(name, 0) + 1e-9:
            lack = f"the run needs {amount:g} {name} and Ray has {have.get(name, 0):g}"
            if runtime.address == "local":
                raise UserError(f"{lack}; lower runtime.num_workers, gpus_per_worker, meta_resources or meta.replicas")
            say(f"{lack}; waiting for the cluster to grow (if it cannot, stop and lower runtime.num_workers)")
