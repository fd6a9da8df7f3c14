"""The next micro-batch's inputs, gathered and corrupted by a thread beside the step that is being computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from mlpt.objectives.base import Inputs
from mlpt.training.arm_rows import MicroBatch

Address = tuple[int, MicroBatch]  # of inputs: the step, and which of its micro-batches


class Prefetch:
    """Hands out inputs on the device and makes the ones after them meanwhile: one micro-batch ahead, never more.

    make    (step, micro-batch) -> inputs on the CPU. It is pure, so that it does not matter when and where it runs.
    device  for a GPU the inputs wait in pinned memory, so that nothing waits for their copies.
    """

    def __init__(self, make: Callable[[int, MicroBatch], Inputs], device: torch.device) -> None:
        self._make, self._device = make, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[Address, Future[Inputs]] | None = None

    def get(self, wanted: Address, after: Address | None = None) -> Inputs:
        """The inputs of `wanted`; those of `after` are begun. Raises what making them raises."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and _same(ahead[0], wanted):
            inputs = ahead[1].result()
        else:
            inputs = self._made(wanted)
        if after is not None:
            self._ahead = after, self._thread.submit(self._made, after)
        return inputs.to(self._device)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _made(self, wanted: Address) -> Inputs:
        inputs = self._make(*wanted)
        return inputs.pinned() if self._device.type == "cuda" else inputs


def _same(one: Address, other: Address) -> bool:
    (step, first), (other_step, second) = one, other
    alike = (step, first.slot, first.arm) == (other_step, second.slot, second.arm)
    return alike and np.array_equal(first.rows, second.rows)
