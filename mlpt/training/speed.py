"""How much of the machine a run uses: the model's operations a token, and what this machine computes at best."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from mlpt.meta.learner import peak_bytes
from mlpt.training.stopwatch import Stopwatch

_MEASURED_S = 0.1  # of each measurement; the fastest pass counts
_SIDE = {"cpu": 1024, "cuda": 4096}
_COPIED_BYTES = {"cpu": 1 << 26, "cuda": 1 << 28}


class MachineUse:
    """What one rank's training makes of its device, from when this process began to train."""

    def __init__(self, flops: float, device: torch.device, dtype: torch.dtype):
        """flops: of a token, as `flops_per_token` has them."""
        self._flops, self._device, self._dtype = flops, device, dtype
        self._making = Stopwatch()
        self._began = 0.0  # seconds of training before this process
        self._told = 0.0

    def begin(self, trained_seconds: float) -> None:
        """Training goes on after so many seconds in earlier processes."""
        self._began = trained_seconds

    @contextlib.contextmanager
    def making_batches(self) -> Iterator[None]:
        """Rows are read, corrupted and moved to the device while the block lasts."""
        self._making.start()
        yield
        self._making.stop()

    def lately(self, seconds: float) -> dict[str, float]:
        """Of the `seconds` since this was last asked: `data_share`, what part went into making batches; `peak_bytes`,
        the most memory that this process, or its GPU, has held so far."""
        before, self._told = self._told, self._making.seconds
        return {"data_share": (self._told - before) / seconds, "peak_bytes": peak_bytes(self._device.type)}

    def figures(self, tokens_per_second: float, trained_seconds: float) -> dict[str, float]:
        """`data_share`, what part of training went into making batches; `model_flops_per_token`; and `mfu`, the model's
        operations a second as a share of what matrix products of the same precision reach now.

        tokens_per_second  of this rank. trained_seconds: those of earlier processes included.
        """
        here = trained_seconds - self._began
        share = self._making.seconds / here if here > 0 else 0.0
        found = {"data_share": share, "model_flops_per_token": self._flops}
        with contextlib.suppress(torch.OutOfMemoryError):  # training has left no room to measure: then without it
            ceiling = matmul_flops(self._device, self._dtype, torch.get_num_threads())
            found["mfu"] = tokens_per_second * self._flops / ceiling
        return found


def flops_per_token(body: nn.Module, config: Any, length: int) -> float:
    """Operations of a forward and a backward pass a token: 6 N + 12 layers * hidden * length (Chowdhery et al. 2022,
    PaLM, appendix B), with N the weights of the encoder `body` without its embeddings, and its transformers `config`.

    What it leaves out: heads, second passes that some objectives make, weights that several layers share, and that
    layers with a window attend to less.
    """
    tables = {id(one.weight) for one in body.modules() if isinstance(one, nn.Embedding)}
    weights = sum(one.numel() for one in body.parameters() if id(one) not in tables)
    attention = getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)  # not all name them so
    return 6.0 * weights + 12.0 * attention * length


@lru_cache
def matmul_flops(device: torch.device, dtype: torch.dtype = torch.float32, threads: int = 0) -> float:
    """Operations a second of square matrix products, the fastest of some tenths of a second.

    threads  what torch uses now (`torch.get_num_threads()`): one measurement for each number is kept.
    """
    side = _SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2.0 * side**3 / _fastest(lambda: left @ right, device)


def copied_bytes(device: torch.device) -> float:
    """Bytes a second that are copied within the device's memory: read and written ones count once."""
    source = torch.ones(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return source.numel() / _fastest(lambda: target.copy_(source), device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest pass."""
    fastest, end = float("inf"), time.perf_counter() + _MEASURED_S
    work()
    while time.perf_counter() < end or fastest == float("inf"):
        _synchronise(device)
        start = time.perf_counter()
        work()
        _synchronise(device)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
