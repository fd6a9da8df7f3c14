"""Fine-tuning over Ray: cells (seeds, learning rates, tasks) side by side, or workers that share each step.

A task's rows and the saved model are put into the object store once; every cell reads them from there.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from mlpt.config import RuntimeConfig
from mlpt.downstream.cell_run import Prepared
from mlpt.downstream.config import DownstreamConfig, FinetuneCell, FinetuneConfig, cells
from mlpt.downstream.finetune import Show, check, finetune, prepare, read_results, run_cell, write_all
from mlpt.downstream.loading import say_masks
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.data import read_tasks
from mlpt.downstream.multitask.results import MultitaskResult
from mlpt.downstream.multitask.run import read_finished, run_multitask
from mlpt.downstream.place import Place
from mlpt.downstream.results import RESULTS, CellResult, summarise, table
from mlpt.downstream.work import Say, Shown
from mlpt.errors import UserError
from mlpt.run.saved import resolve_model
from mlpt.runtime.cluster import check_cores, check_resources, ray_session
from mlpt.runtime.shared_steps import on_workers
from mlpt.storage.store import is_uri
from mlpt.training.group import Group


def finetune_cells(
    config: FinetuneConfig,
    workers: int,
    say: Say = print,
    show: Show = lambda what, done, total, note: None,
    address: str = "local",
    run_id: str | None = None,
) -> list[CellResult]:
    """All cells of the grid, `workers` at a time (1: one after another in this process, without Ray).

    Every task is read before the first cell begins. Writes `results.json` after each cell. A finished cell is read
    back, a killed one resumes. run_id: of results at a URI (`mlpt.downstream.place`).
    """
    config = config.model_copy(update={"model": resolve_model(config.model, say)})
    if config.num_workers > 1:
        if workers > 1:
            raise UserError("--workers puts cells side by side and num_workers shares the steps of each; choose one")
        return _sharing_steps(config, say, show, address, run_id)
    if workers <= 1:
        return finetune(config, say, show, run_id=run_id)
    contents, grid, place = check(config), _grid(config, run_id), Place(config.out, run_id)
    found = read_results(config, contents, run_id)
    waiting = [cell for cell in grid if cell.place.inner not in found]
    if len(waiting) <= 1:
        return finetune(config, say, show, run_id=run_id)
    say_masks(config, say)
    say(f"{len(waiting)} of {len(grid)} cells, {workers} at a time; results go to {config.out}")
    runtime = RuntimeConfig(address=address)
    if address == "local":
        check_cores(min(workers, len(waiting)), 1, "--workers")
    with ray_session(runtime, min(workers, len(waiting))):
        _run_all(waiting, workers, say, show)
    found = read_results(config, contents, run_id)
    everything = write_all(place, found, grid)
    say(f"results: {place.named(RESULTS)}")
    say(table(summarise(everything)))
    return [found[cell.place.inner] for cell in grid]


def _sharing_steps(config: FinetuneConfig, say: Say, show: Show, address: str, run_id: str | None) -> list[CellResult]:
    """All cells of the grid, one after another, each on all workers, in a Ray of its own: what one left cannot hold up
    the next."""

    def run(cell: FinetuneCell, prepared: Prepared, say: Say, show: Shown) -> CellResult:
        with _workers(config, address) as runtime:
            shared = ray.put(prepared)
            found: CellResult = on_workers(partial(_as_rank, cell, shared), runtime, cell.folder, say, show)
            return found

    return finetune(config, say, show, run, run_id)


def _as_rank(cell: FinetuneCell, prepared: Any, group: Group, say: Say, show: Shown) -> CellResult:
    return run_cell(cell, ray.get(prepared), say, show, group)


def multitask(
    config: MultitaskConfig,
    say: Say = print,
    show: Show = lambda what, done, total, note: None,
    address: str = "local",
    run_id: str | None = None,
) -> MultitaskResult:
    """One multi-task run, in this process or on as many workers as it asks for."""
    alone = config.num_workers == 1
    if alone or read_finished(config, read_tasks(config.tasks, config.source), run_id) is not None:
        return run_multitask(config, say, show=show, run_id=run_id)
    with _workers(config, address) as runtime:
        work, shown = partial(_multitask_as_rank, config, run_id), partial(show, "fine-tuning on all tasks")
        result: MultitaskResult = on_workers(work, runtime, Place(config.out, run_id).folder, say, shown)
        return result


def _multitask_as_rank(
    config: MultitaskConfig, run_id: str | None, group: Group, say: Say, show: Shown
) -> MultitaskResult:
    def shown(what: str, done: int, total: int, note: str) -> None:
        show(done, total, note)

    return run_multitask(config, say, group=group, show=shown, run_id=run_id)


@contextlib.contextmanager
def _workers(config: DownstreamConfig, address: str) -> Iterator[RuntimeConfig]:
    """A Ray session with room for the workers of one fine-tuning."""
    on_gpus = 1 if torch.cuda.is_available() else 0
    runtime = RuntimeConfig(address=address, num_workers=config.num_workers, gpus_per_worker=on_gpus)
    if address == "local":
        check_cores(config.num_workers, 1, "num_workers")
    with ray_session(runtime, config.num_workers):
        check_resources(runtime, learners=0, say=lambda text: None)
        yield runtime


def _grid(config: FinetuneConfig, run_id: str | None) -> list[FinetuneCell]:
    """Workers run in folders of their own; a hub name and a URI stay as they are."""
    out = config.out if is_uri(config.out) else str(Path(config.out).resolve())
    model = str(Path(config.model).resolve()) if Path(config.model).exists() else config.model
    return cells(config.model_copy(update={"out": out, "model": model}), run_id)


def _run_all(waiting: list[FinetuneCell], workers: int, say: Say, show: Show) -> None:
    threads = max(1, (os.cpu_count() or 1) // workers)
    gpus = torch.cuda.device_count() / workers if torch.cuda.is_available() else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_run_one)
    prepared: dict[str, Any] = {}
    running: dict[Any, FinetuneCell] = {}
    begun = 0
    for cell in waiting:
        if cell.task not in prepared:
            shared = prepare(cell.config, cell.task)
            for warning in shared.warnings():
                say(warning)
            prepared[cell.task] = ray.put(shared)
        if len(running) >= workers:
            _finish_one(running, say)
        running[task.remote(cell, prepared[cell.task], threads)] = cell
        begun += 1
        show("fine-tuning, in cells", begun - len(running), len(waiting), "")
    while running:
        _finish_one(running, say)
        show("fine-tuning, in cells", begun - len(running), len(waiting), "")


def _finish_one(running: dict[Any, FinetuneCell], say: Say) -> None:
    done, _ = ray.wait(list(running), num_returns=1)
    cell = running.pop(done[0])
    try:
        result: CellResult = ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise
    scores = result.best[result.select_split]
    say(f"{cell.name}: {result.metric} {scores[result.metric]:.4f}")


def _run_one(cell: FinetuneCell, prepared: Prepared, threads: int) -> CellResult:
    torch.set_num_threads(threads)
    # What comes out of the object store is read-only; training writes to neither rows nor base weights, it copies.
    return run_cell(replace(cell), prepared, say=lambda text: None)
