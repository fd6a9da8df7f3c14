"""Two workers of a thread each against one, on equal global batches, in turns: the step of mlpt's own loop with DDP.

A machine that does something else gives a wrong ratio: how many cores other processes took meanwhile is measured too.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.bench.step import BATCH, LENGTH, OurTraining, plain_training
from mlpt.errors import UserError
from mlpt.training.group import Group

WORKERS, ROUNDS = 2, 5
_OUTCOME = "outcome.json"


def run() -> list[Row]:
    """Tokens a second of two workers against those of one, and the cores that other processes took meanwhile."""
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count() or 1
    if cores < WORKERS:
        raise UserError(f"`mlpt bench scale` compares {WORKERS} workers with one, and there is {cores} core")
    with tempfile.TemporaryDirectory() as folder:
        spawn(_worker, (folder,), nprocs=WORKERS)
        found: Mapping[str, list[list[float]]] = json.loads((Path(folder) / _OUTCOME).read_text())
    return rows_of(found, cores)


def rows_of(found: Mapping[str, list[list[float]]], cores: int) -> list[Row]:
    """found  [seconds of a step, cores that others took] of each round, of `one` worker and of `two`."""
    one, two = (statistics.median(seconds for seconds, _ in found[which]) for which in ("one", "two"))
    tokens = BATCH * LENGTH
    ours, peer = tokens / two, tokens / one
    speed = Row("scale", "2 workers against 1", ours, peer, one / two, "tokens/s", peak_bytes(), machine())
    busy = statistics.mean(taken for rounds in found.values() for _, taken in rounds)
    name = f"taken of {cores} cores by other processes meanwhile (above 0.1: no measurement)"
    return [speed, Row("scale", name, busy, None, None, "cores", peak_bytes(), machine())]


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    group = Group(rank, WORKERS)
    trainings = {  # of the same two micro-batches
        "one": plain_training(Group(), WORKERS, folder) if rank == 0 else None,
        "two": plain_training(group, WORKERS, folder),
    }
    found: dict[str, list[list[float]]] = {"one": [], "two": []}
    for turn in range(1 + ROUNDS):  # the first one warms up
        for which, training in trainings.items():
            seconds, others = _measured(training, group)
            if turn:
                found[which].append([seconds, others])
    if rank == 0:
        (Path(folder) / _OUTCOME).write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # without destructors: gloo's threads may outlive a process group and abort the process


def _measured(training: OurTraining | None, group: Group) -> tuple[float, float]:
    """Seconds of a step on rank 0, and the cores that neither rank had; None: this rank waits for the other one."""
    dist.barrier()
    begun, own, all_of_them = time.perf_counter(), time.process_time(), _busy_seconds()
    seconds = 0.0 if training is None else training.seconds()
    dist.barrier()
    took, own = time.perf_counter() - begun, time.process_time() - own
    others = _busy_seconds() - all_of_them - sum(group.gather(own))
    return seconds, max(0.0, others / took)


def _busy_seconds() -> float:
    """What all processes of this machine have computed."""
    times: Any = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))
