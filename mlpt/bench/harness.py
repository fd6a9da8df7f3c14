"""Measuring ours against a peer in one run: interleaved, as ratios, with peak memory and the machine."""

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One line of `mlpt bench --json`. `ratio` > 1: ours is better; `unit` says what `ours` and `peer` count."""

    case: str
    name: str
    ours: float
    peer: float | None
    ratio: float | None
    unit: str
    peak_bytes: int
    machine: str


def machine() -> str:
    """CPU count, processor, device and torch version, in one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    software = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{os.cpu_count()} CPUs {platform.machine()}, {device}, {software}"


def peak_bytes() -> int:
    """Peak resident memory of this process so far, in bytes (peak allocated device memory on a GPU)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seconds_interleaved(
    *functions: Callable[[], object], rounds: int, warmup: int = 1, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each function, called in turn `rounds` times so that a busy machine slows all alike.

    clock  `time.process_time` counts processor time instead of the time that passes.
    """
    for _ in range(warmup):
        for function in functions:
            function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for taken, function in zip(times, functions, strict=True):
            wait_for_device()
            start = clock()
            function()
            wait_for_device()
            taken.append(clock() - start)
    return [statistics.median(taken) for taken in times]


def wait_for_device() -> None:
    """Return when the GPU has done all its work; at once without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
