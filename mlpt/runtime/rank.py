"""What each Ray Train worker of `mlpt pretrain` runs, watched, with a line to the driver."""

import contextlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device

from mlpt.config import RunConfig
from mlpt.errors import CrashError, UserError, is_lasting, system_error, told
from mlpt.logs import Event, log_to_file
from mlpt.run.build import run_rank, threads_of
from mlpt.run.folder import RunDir
from mlpt.runtime.hangs import Watch
from mlpt.runtime.hub import asked
from mlpt.runtime.meta_actor import BUILD_S, START_TIMEOUT_S, ActorSource, create_actor, may_have_spare
from mlpt.runtime.replicas import Replicas
from mlpt.stopping import RunStopped
from mlpt.storage.mirror import Remote, fetch_log, send_log, working_folder
from mlpt.training.group import Group, waited_too_long

_STOP_POLL_S = 0.5
_ALIVE_S = 5.0
_log = logging.getLogger(__name__)


def train_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    context = ray.train.get_context()
    rank, remote, hub = context.get_world_rank(), settings["remote"], settings["hub"]
    run_dir = working_folder(settings["run_dir"], remote)
    log = run_dir / "logs" / f"rank_{rank}.log"
    fetch_log(remote, log)
    log_to_file(log)
    config = RunConfig.model_validate(settings["config"])
    earlier = asked(hub.error.remote(), or_else=None)
    if earlier is not None:  # another rank said what is wrong before the group was restarted
        return {"error": earlier}
    torch.set_num_threads(threads_of(config.runtime.cpus_per_worker))
    group = Group(rank, context.get_world_size(), get_device())
    source = None
    if rank == 0 and settings["actor"] is not None:
        create = partial(create_actor, config, settings["blocks"], run_dir, remote)
        spare = partial(create, spare=True) if may_have_spare(config) else None
        patience = START_TIMEOUT_S if config.runtime.address != "local" else BUILD_S  # a cluster may have to grow first
        limit = config.runtime.hang_timeout
        replicas = None
        if settings["replicas"]:
            silence = None if limit is None else max(limit, patience)
            replicas = Replicas(settings["replicas"], lambda number: create(replica=number), silence)
        source = ActorSource(settings["actor"], create, spare, limit, patience, replicas)
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
        said = _for_people(error, RunDir(run_dir, remote))
        if said is None:
            _log.exception("rank %d failed", rank)
            if (late := waited_too_long(error, rank)) is not None:  # a restart of the group may mend it
                raise CrashError(late) from None
            raise
        _log.error("%s", said)
        asked(hub.fail.remote(said), or_else=None)
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
        return asked(hub.still.remote(), or_else=math.inf)  # without the hub, each rank is on its own

    def report() -> None:
        while True:  # from the first moment on: who was never heard of is not missed
            hub.alive.remote(rank, os.getpid(), watch.still())
            if done.wait(_ALIVE_S if limit is None else min(_ALIVE_S, limit / 4)):
                return

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

    def heard() -> bool:
        watch.beat()
        return should_stop()

    return heard


def _beginning(tell: Callable[[Event], None], watch: Watch) -> Callable[[Event], None]:
    """`tell`, which hears of what is done before and after all steps."""

    def told(event: Event) -> None:
        if event["event"] == "doing":
            watch.begin()
        tell(event)

    return told


def _for_people(error: Exception, run: RunDir) -> str | None:
    """The line about an error that a restart of the group would only meet again; None for any other."""
    if isinstance(error, UserError):
        return str(error)
    trouble = system_error(error)
    if trouble is None or not is_lasting(trouble):
        return None
    return told(trouble, run.way_on())


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
        while not heard.is_set() and not done.wait(_STOP_POLL_S):
            if asked(hub.stopping.remote(), or_else=False):
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
