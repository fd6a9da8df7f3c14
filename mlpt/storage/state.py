"""State is one type: plain JSON values and tensors, each by name. Names are nested by `/`.

Rules, hooks, work and the loop give and take it; a checkpoint holds one; `Flat` is how its tensors travel.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 64  # bytes; every tensor of a flat buffer begins at a multiple


@dataclass(frozen=True)
class State:
    """JSON `values`, which survive a round trip exactly, and `tensors` by name."""

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def join(cls, states: Mapping[str, "State"]) -> "State":
        """One state of many: values under each one's name, tensors as `name/tensor`."""
        values = {name: dict(state.values) for name, state in states.items()}
        tensors = {f"{name}/{key}": one for name, state in states.items() for key, one in state.tensors.items()}
        return cls(values, tensors)

    def part(self, name: str) -> "State":
        """The inverse of `join` for one name; empty where there is nothing of that name."""
        prefix = f"{name}/"
        tensors = {key.removeprefix(prefix): one for key, one in self.tensors.items() if key.startswith(prefix)}
        return State(self.values.get(name, {}), tensors)

    def __bool__(self) -> bool:
        return bool(self.values) or bool(self.tensors)


@dataclass(frozen=True)
class Flat:
    """Named tensors in one buffer, as they travel between processes: one copy in, none out.

    layout  (name, dtype, shape) of each tensor, in the order of the buffer.
    buffer  (bytes,) uint8, every tensor aligned to 64 bytes.
    """

    layout: tuple[tuple[str, str, tuple[int, ...]], ...]
    buffer: np.ndarray

    @classmethod
    def pack(cls, tensors: Mapping[str, Tensor]) -> "Flat":
        """A copy of `tensors`, from any device."""
        layout = tuple((name, str(one.dtype).removeprefix("torch."), tuple(one.shape)) for name, one in tensors.items())
        buffer = np.empty(sum(_room(one.nbytes) for one in tensors.values()), dtype=np.uint8)
        packed = cls(layout, buffer)
        for name, view in packed.unpack().items():
            view.copy_(tensors[name].detach())
        return packed

    def unpack(self) -> dict[str, Tensor]:
        """The tensors, on the CPU, sharing memory with the buffer; a buffer that travelled may be read-only."""
        with warnings.catch_warnings():
            # Ray hands out read-only arrays, of which torch warns; whoever unpacks copies before writing.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            flat = torch.from_numpy(self.buffer)
        start, found = 0, {}
        for name, kind, shape in self.layout:
            dtype = getattr(torch, kind)
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            piece = flat[start : start + size].view(dtype) if size else torch.empty(0, dtype=dtype)
            found[name] = piece.view(shape)
            start += _room(size)
        return found


def _room(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
