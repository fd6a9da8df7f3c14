"""Pretraining the groups of the two-moons study, shared out among processes. The numbers are those of a single one."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from mlpt.errors import UserError
from mlpt.studies.moons.declaration import MoonsStudy
from mlpt.studies.moons.pretraining import CellRuns
from mlpt.studies.moons.rows import Rows

_LOOK_EVERY_S = 0.5

Stop = Callable[[], bool]
Done = Callable[[int], None]  # micro-batches that were trained on since it was last called


def pretrain(study: MoonsStudy, groups: Sequence[CellRuns], cores: int, stop: Stop, done: Done) -> None:
    """Take all groups to the study's steps, or till `stop()`, with all of it saved.

    cores  processes side by side, each with groups of its own.
    Raises `UserError` where one of them has died.
    """
    shares = [groups[first::cores] for first in range(min(cores, len(groups)))]
    if len(shares) == 1:
        _advance(study, groups, stop, done)
        return
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, SpawnProcess] = {}
    for share in shares:
        ours, theirs = context.Pipe()
        cells, folder = [group.cell for group in share], share[0].path.parent
        process = context.Process(target=_share, args=(study, cells, folder, theirs))
        process.start()
        theirs.close()
        running[ours] = process
    died = False
    while running:
        ready = wait(list(running), timeout=_LOOK_EVERY_S)
        for pipe in [one for one in running if one in ready]:
            try:
                done(pipe.recv())
            except (EOFError, ConnectionResetError):  # it has not read everything that was sent
                process = running.pop(pipe)
                process.join()
                died = died or process.exitcode != 0
        if stop() or died:
            for pipe in running:
                with contextlib.suppress(OSError):  # it has just ended
                    pipe.send("stop")
    if died:
        raise UserError("a process of the study has died; what it had saved stays: the same command goes on")
    for group in groups:
        group.load()


def _advance(study: MoonsStudy, groups: Sequence[CellRuns], stop: Stop, done: Done) -> None:
    """In turn, `save_every` steps at a time, those behind first: whenever it stops, all are about as far."""
    while behind := [group for group in groups if group.steps < study.steps]:
        least = min(group.steps for group in behind)
        for group in behind:
            if group.steps == least:
                group.advance(min(study.steps, least + study.save_every), stop)
                done((group.steps - least) * len(group.models))
                if stop():
                    return


def _share(study: MoonsStudy, cells: Sequence[str], folder: Path, parent: Connection) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to all processes at once, they are for the parent

    def done(count: int) -> None:
        with contextlib.suppress(OSError):  # the parent has been killed
            parent.send(count)

    rows = Rows(study.vocabulary)
    # Once the parent has gone there is something to be read, too: the end.
    _advance(study, [CellRuns(study, cell, rows, folder) for cell in cells], parent.poll, done)
