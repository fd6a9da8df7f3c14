"""A Ray Train run of ours: its trainer, the hub beside it, and the wait for its end."""

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mlpt.config import RuntimeConfig
from mlpt.errors import CrashError, UserError
from mlpt.runtime.hub import Hub, asked
from mlpt.runtime.loopback import LoopbackTorchConfig
from mlpt.stopping import Stopped, StopRequest

_SIGNAL_POLL_S = 0.2
CONTROLLER_FAILURES = 3


class _ByValue:
    """What Ray Train hands to its controller and workers in place of a reference: the function itself."""

    def __init__(self, function: Callable[[], Any]):
        self._function = function

    def get(self) -> Callable[[], Any]:
        return self._function


class _Trainer(TorchTrainer):
    """Leaves no object of this process in Ray's store, where it would be missed when this node's Ray ends.

    Ray then asks the store for it, which has gone, too, and ends the process at once, before anybody could say why.
    """

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if (held := arguments.get("train_fn_ref")) is not None:
            arguments["train_fn_ref"] = _ByValue(held.get())
            held._ref = None  # `fit`, which calls this, holds on to it
        return super()._initialize_and_run_controller(**arguments)


def make_hub(runtime: RuntimeConfig) -> Any:
    """The actor between ranks and driver, where the driver is, which may outlive every other node.

    One that dies is there again, and knows nothing.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    hub: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(Hub)
    return hub.options(scheduling_strategy=here).remote(runtime.hang_timeout)


def make_trainer(
    rank: Callable[[dict[str, Any]], dict[str, Any]], settings: dict[str, Any], runtime: RuntimeConfig, run_dir: Path
) -> TorchTrainer:
    """The trainer whose workers each run `rank(settings)`; Ray keeps its own notes in `run_dir` (see `forget`)."""
    on_gpus = runtime.gpus_per_worker > 0
    resources = {"CPU": runtime.cpus_per_worker, **runtime.worker_resources}
    resources |= {"GPU": runtime.gpus_per_worker} if on_gpus else {}
    if runtime.hang_timeout is not None:  # for ranks that cannot notice it themselves, because they are stopped
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(runtime.hang_timeout)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_timeout(runtime))
    return _Trainer(
        rank,
        train_loop_config=settings,
        torch_config=LoopbackTorchConfig() if runtime.address == "local" else TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=runtime.num_workers,
            use_gpu=on_gpus,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=runtime.resize_every,
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex,  # Ray resumes runs of the same name silently; ours are resumed on request
            storage_path=str(run_dir.resolve() / ".ray"),  # Ray takes a relative path for a broken URI
            failure_config=FailureConfig(
                max_failures=runtime.max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def forget(run_dir: Path) -> None:
    """Remove Ray's own notes on a run."""
    shutil.rmtree(run_dir / ".ray", ignore_errors=True)


def fit(
    trainer: TorchTrainer, hub: Any, stop: StopRequest | None = None, given_up: Callable[[], str | None] = lambda: None
) -> Any:
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
            if stop is not None and stop():
                if not asked(hub.stop.remote(), or_else=False) and not told:
                    raise Stopped(stop.number)
                told = True  # and told again, because a hub that dies forgets it
    result = results.get()
    if isinstance(result, BaseException):
        raise result
    return result


def start_timeout(runtime: RuntimeConfig) -> float:
    return runtime.start_timeout or (900 if isinstance(runtime.num_workers, int) else 60)


def why_failed(error: Exception, hub: Any, way_on: str) -> UserError:
    """The line about a run that `fit` could not end: what a rank told the hub, or else Ray's reason and `way_on`."""
    try:
        said = ray.get(hub.error.remote(), timeout=10)
    except ray.exceptions.RayError:
        said = None
    if said is not None:
        return UserError(said)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1].partition(" Worker exit type:")[0] if lines else type(error).__name__  # Ray's guesses follow
    return CrashError(f"training failed: {reason.rstrip('.')}; {way_on}")
