"""Which labelled rows a look-ahead learns from and is judged by: support and query of one task (MetaLMO, Shen 2021)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mlpt.errors import UserError
from mlpt.randomness import numpy_generator
from mlpt.settings import Settings

MLM = "mlm"


class EpisodeConfig(Settings):
    """Where support and query come from, and how tasks take turns."""

    query_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="of a task's rows: only these judge, only the others teach; 0 (published): any rows do both, but "
        "never the same row at once",
    )
    items_per_task: int | None = Field(
        default=None,
        gt=0,
        description="published: a task is drawn for so many items in a row, whatever batches they are in; None: one "
        "task for every micro-batch",
    )


@dataclass(frozen=True)
class Episode:
    """One micro-batch of labelled rows; all (rows,): the number of the task (in the order of the sizes that were
    given), and its rows for support and for query."""

    tasks: NDArray[np.int64]
    support: NDArray[np.int64]
    query: NDArray[np.int64]


class Episodes:
    """Draws episodes: a pure function of the micro-batch's number.

    sizes  rows of each task by name. Tasks are drawn uniformly; masked language modelling ("mlm"), if it is one of
           them, as often as all the others together.

    Raises `UserError` for a task whose rows cannot be both support and query.
    """

    def __init__(self, sizes: Mapping[str, int], config: EpisodeConfig, seed: int):
        self.names, self.config, self.seed = list(sizes), config, seed
        self._sizes = np.array(list(sizes.values()), dtype=np.int64)
        # The last rows in a task's own order judge; without a share all rows do both.
        self._query = np.ceil(self._sizes * config.query_share).astype(np.int64)
        short = [
            name
            for name, size, query in zip(self.names, self._sizes, self._query, strict=True)
            if size < 2 or size == query
        ]
        if not self.names or short:
            what = f"task '{short[0]}' has too few labelled rows" if short else "there is no labelled task"
            raise UserError(f"{what} for a support row and a query row; give more, or lower query_share")
        others = sum(name != MLM for name in self.names)
        weights = np.array([max(1, others) if name == MLM else 1 for name in self.names], dtype=np.float64)
        self._shares = np.cumsum(weights / weights.sum())
        self._orders: dict[int, tuple[int, int]] = {}

    def draw(self, micro_batch: int, rows: int) -> Episode:
        """The labelled rows of micro-batch number `micro_batch` (from 0, over all steps)."""
        items = np.arange(micro_batch * rows, (micro_batch + 1) * rows)
        per_task = self.config.items_per_task or rows
        tasks = np.array([self._task(int(one)) for one in items // per_task], dtype=np.int64)
        generator = numpy_generator(self.seed, "episodes/rows", micro_batch)
        support, query = np.empty(rows, np.int64), np.empty(rows, np.int64)
        for place, task in enumerate(tasks):
            support[place], query[place] = self._rows(int(task), generator)
        return Episode(tasks, support, query)

    def _task(self, group: int) -> int:
        point = numpy_generator(self.seed, "episodes/task", group).random()
        return min(int(np.searchsorted(self._shares, point, side="right")), len(self.names) - 1)

    def _rows(self, task: int, generator: np.random.Generator) -> tuple[int, int]:
        size, judges = int(self._sizes[task]), int(self._query[task])
        if not judges:
            first = int(generator.integers(size))
            second = int(generator.integers(size - 1))
            return first, second + (second >= first)
        step, start = self._order(task)
        places = int(generator.integers(size - judges)), size - 1 - int(generator.integers(judges))
        return (start + step * places[0]) % size, (start + step * places[1]) % size

    def _order(self, task: int) -> tuple[int, int]:
        """A permutation of the task's n rows that takes no memory: place i is row start + step * i modulo n."""
        if task not in self._orders:
            size = int(self._sizes[task])
            generator = numpy_generator(self.seed, f"episodes/split/{self.names[task]}")
            step = int(generator.integers(1, size))
            while math.gcd(step, size) > 1:
                step = step % size + 1
            self._orders[task] = step, int(generator.integers(size))
        return self._orders[task]
