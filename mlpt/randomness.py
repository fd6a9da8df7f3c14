"""Randomness is addressed, not drawn: every stream is named by (seed, purpose, step, rank).

A run can be resumed at any step without replaying the draws before it, and no stream depends on how much another used.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def address(seed: int, purpose: str, step: int = 0, rank: int = 0) -> int:
    """A 63-bit seed for one stream, from the BLAKE2b hash of its address."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(seed: int, purpose: str, step: int = 0, rank: int = 0) -> "torch.Generator":
    """A CPU generator at the start of the stream (seed, purpose, step, rank)."""
    import torch  # a second or more, and the processes that prepare text need NumPy alone

    return torch.Generator().manual_seed(address(seed, purpose, step, rank))


def training_noise(seed: int, arm: str, step: int, slot: int) -> "torch.Generator":
    """The stream that corrupts micro-batch `slot` of global step `step`: whoever has its rows can redraw it."""
    return torch_generator(seed, f"noise/{arm}", step, slot)


def numpy_generator(seed: int, purpose: str, step: int = 0, rank: int = 0) -> np.random.Generator:
    """A NumPy generator at the start of the stream (seed, purpose, step, rank)."""
    return np.random.Generator(np.random.PCG64(address(seed, purpose, step, rank)))
