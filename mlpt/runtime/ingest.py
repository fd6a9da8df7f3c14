"""Preparing blocks with Ray tasks, one a shard: the same function, and the same bytes, as a process pool."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray

from mlpt.config import RunConfig
from mlpt.reporting.display import Display
from mlpt.run.blocks import blocks_of
from mlpt.runtime.cluster import ray_session, where

J = TypeVar("J")
R = TypeVar("R")


def run_shards_on_ray(function: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
    """Results of `function` over `jobs`, in order; at most two tasks a CPU are under way, so memory stays bounded."""
    task = ray.remote(num_cpus=1)(function)
    limit = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    for job in jobs:
        if len(waiting) >= limit:
            yield ray.get(waiting.pop(0))
        waiting.append(task.remote(job))
    for future in waiting:
        yield ray.get(future)


def blocks_on_cluster(config: RunConfig, folder: Path, display: Display, debug: bool = False) -> str:
    """`mlpt.run.blocks.blocks_of`, its shards prepared by the nodes of the cluster.

    `config.blocks` must be a folder or URI that every node can read and write.
    """
    display.doing(where(config.runtime))
    with ray_session(config.runtime, 1, debug):
        return blocks_of(config, folder, display, run_shards_on_ray)
