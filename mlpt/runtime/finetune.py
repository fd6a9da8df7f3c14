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
from mlpt.downstream.finetune import finetune, prepare, read_result, run_cell
from mlpt.downstream.results import CellResult, summarise, table, write_results
from mlpt.errors import UserError
from mlpt.runtime.cluster import ray_session

Say = Callable[[str], None]


def finetune_cells(config: FinetuneConfig, workers: int, say: Say = print, address: str = "local") -> list[CellResult]:
    """All cells of the grid, `workers` at a time (1: one after another in this process, without Ray).

    Writes `results.json` after each cell. A finished cell is read back, a killed one resumes.
    """
    waiting = [cell for cell in _grid(config) if read_result(cell) is None]
    if workers <= 1 or len(waiting) <= 1:
        return finetune(config, say)
    runtime = RuntimeConfig(address=address)
    with ray_session(runtime, workers):
        _run_all(config, waiting, workers, say)
    results = [result for cell in _grid(config) if (result := read_result(cell)) is not None]
    write_results(Path(config.out) / "results.json", results)
    say(table(summarise(results)))
    return results


def _grid(config: FinetuneConfig) -> list[FinetuneCell]:
    absolute = config.model_copy(update={"out": str(Path(config.out).resolve()), "model": _absolute(config.model)})
    return cells(absolute)


def _absolute(model: str) -> str:
    """Workers run in folders of their own; a hub name stays as it is."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def _run_all(config: FinetuneConfig, waiting: list[FinetuneCell], workers: int, say: Say) -> None:
    threads = max(1, (os.cpu_count() or 1) // workers)
    gpus = torch.cuda.device_count() / workers if torch.cuda.is_available() else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_run_one)
    prepared: dict[str, Any] = {}
    running: dict[Any, FinetuneCell] = {}
    for cell in waiting:
        if cell.task not in prepared:
            prepared[cell.task] = ray.put(prepare(cell.config, cell.task))
        if len(running) >= workers:
            _finish_one(running, say)
        running[task.remote(cell, prepared[cell.task], threads)] = cell
    while running:
        _finish_one(running, say)


def _finish_one(running: dict[Any, FinetuneCell], say: Say) -> None:
    done, _ = ray.wait(list(running), num_returns=1)
    cell = running.pop(done[0])
    try:
        result: CellResult = ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise
    scores = next(iter(result.best.values()))
    say(f"{cell.task}, lr {cell.learning_rate:g}, seed {cell.seed}: {result.metric} {scores[result.metric]:.4f}")


def _run_one(cell: FinetuneCell, prepared: Prepared, threads: int) -> CellResult:
    torch.set_num_threads(threads)
    # What comes out of the object store is read-only; training writes to neither rows nor base weights, it copies.
    return run_cell(replace(cell), prepared, say=lambda text: None)
