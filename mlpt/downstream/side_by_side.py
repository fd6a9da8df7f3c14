"""Many short passes through a model on a processor: one a core side by side, instead of one over all cores.

The threads of one pass wait for each other after every operation, which costs more the shorter the operations are and
the busier the machine is: with two cores passes of 8,192 tokens took half the processor time this way.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_MOST = 8  # passes at once: bounds memory on machines with many cores


def side_by_side(work: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """`work` of each item, in their order, several at once; few items wait, so `items` may be a generator.

    workers  passes at once; default: torch's number of threads, up to 8, which share the threads out. 1: no threads.
    `work` must be safe to call from several threads. What it raises is raised here.
    """
    threads = torch.get_num_threads()
    workers = min(threads, _MOST) if workers is None else workers
    if workers == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
