"""The cells of a fine-tuning as Ray tasks: seeds, learning rates and tasks side by side.

A task's rows and the saved model are put into the object store once; every cell reads them from there.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from mlpt.config import RuntimeConfig
from mlpt.downstream.cell_run import Prepared
from mlpt.downstream.config import FinetuneCell, FinetuneConfig, cells
from mlpt.downstream.finetune import Show, check, finetune, prepare, read_result, run_cell, say_masks
from mlpt.downstream.results import CellResult, summarise, table, write_results
from mlpt.errors import UserError
from mlpt.run.saved import resolve_model
from mlpt.runtime.cluster import check_cores, ray_session

Say = Callable[[str], None]


def finetune_cells(
    config: FinetuneConfig,
    workers: int,
    say: Say = print,
    show: Show = lambda what, done, total, note: None,
    address: str = "local",
) -> list[CellResult]:
    """All cells of the grid, `workers` at a time (1: one after another in this process, without Ray).

    Every task is read before the first cell begins. Writes `results.json` after each cell. A finished cell is read
    back, a killed one resumes.
    """
    config = config.model_copy(update={"model": resolve_model(config.model, say)})
    if workers <= 1:
        return finetune(config, say, show)
    contents, grid = check(config), _grid(config)
    waiting = [cell for cell in grid if read_result(cell, contents[cell.task]) is None]
    if len(waiting) <= 1:
        return finetune(config, say, show)
    say_masks(config, say)
    say(f"{len(waiting)} of {len(grid)} cells, {workers} at a time; results go to {config.out}")
    runtime = RuntimeConfig(address=address)
    if address == "local":
        check_cores(min(workers, len(waiting)), 1, "--workers")
    with ray_session(runtime, min(workers, len(waiting))):
        _run_all(waiting, workers, say, show)
    results = [result for cell in grid if (result := read_result(cell, contents[cell.task])) is not None]
    write_results(Path(config.out) / "results.json", results)
    say(f"results: {Path(config.out) / 'results.json'}")
    say(table(summarise(results)))
    return results


def _grid(config: FinetuneConfig) -> list[FinetuneCell]:
    """Workers run in folders of their own; a hub name stays as it is."""
    model = str(Path(config.model).resolve()) if Path(config.model).exists() else config.model
    return cells(config.model_copy(update={"out": str(Path(config.out).resolve()), "model": model}))


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
