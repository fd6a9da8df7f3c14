"""Which rows each rank reads at each step: a seeded permutation an epoch, cut into global batches.

There is no state to save: everything follows from the seed and the position. Ranks share a global batch as
`rows[rank::world]`, so any world size sees the same data in the same order.
"""

import numpy as np
from numpy.typing import NDArray

from mlpt.errors import UserError
from mlpt.randomness import numpy_generator

BLOCK_SHUFFLE_ABOVE = 10_000_000  # rows; a whole permutation of more takes seconds and hundreds of MB
BLOCK_ROWS = 1 << 20


class Sampler:
    """The endless stream of rows: epoch after epoch, each row once an epoch, batches running on across the seam.

    n_rows      rows of the split.
    batch_size  rows of a global batch, over all ranks (and accumulation steps).
    seed        names the order.
    block       rows of a chunk: chunks are permuted, then the rows in each, so that memory stays at one chunk's
                permutation and reads stay near each other. None: one chunk up to 10 million rows, else 2**20 rows.
    stream      tells orders of one seed apart.

    Raises UserError when the split has fewer rows than one batch.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int, block: int | None = None, stream: str = ""):
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size} is not positive; a batch holds at least one row")
        if n_rows < batch_size:
            raise UserError(
                f"too little text: {n_rows} blocks don't fill one batch of {batch_size}; give more text, or a smaller "
                "batch or block size"
            )
        self.n_rows, self.batch_size, self.seed = n_rows, batch_size, seed
        self.block = block or (n_rows if n_rows <= BLOCK_SHUFFLE_ABOVE else BLOCK_ROWS)
        self._stream = f"/{stream}" if stream else ""
        self._chunk: tuple[tuple[int, int], NDArray[np.int64]] | None = None  # the last permutation, by its address
        self._order: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def rows(self, step: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """This rank's rows of global batch `step` (0-based), int64."""
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world}")
        return self.take(step * self.batch_size, self.batch_size)[rank::world]

    def take(self, position: int, count: int) -> NDArray[np.int64]:
        """`count` rows from a position of the endless stream on: (count,) int64."""
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            part = self._from(position, count)
            parts.append(part)
            position += len(part)
            count -= len(part)
        return np.concatenate(parts)

    def epoch(self, step: int) -> float:
        """How many times the rows have been gone through when global batch `step` begins."""
        return step * self.batch_size / self.n_rows

    def _from(self, position: int, most: int) -> NDArray[np.int64]:
        """Up to `most` rows from a position of the endless stream; fewer where a chunk ends."""
        epoch, place = divmod(position, self.n_rows)
        order, ends = self._chunks(epoch)
        index = int(np.searchsorted(ends, place, side="right"))
        begin = int(ends[index - 1]) if index else 0
        inside = self._permutation(epoch, int(order[index]))
        return inside[place - begin : place - begin + most]

    def _chunks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of the chunks in an epoch, and the place in the epoch at which each ends."""
        if self._order is None or self._order[0] != epoch:
            count = -(-self.n_rows // self.block)
            order = numpy_generator(self.seed, f"sampler/chunks{self._stream}", epoch).permutation(count)
            sizes = np.minimum(self.block, self.n_rows - order * self.block)
            self._order = (epoch, order, np.cumsum(sizes))
        return self._order[1:]

    def _permutation(self, epoch: int, chunk: int) -> NDArray[np.int64]:
        """The rows of one chunk in this epoch's order."""
        if self._chunk is None or self._chunk[0] != (epoch, chunk):
            first = chunk * self.block
            size = min(self.block, self.n_rows - first)
            rows = numpy_generator(self.seed, f"sampler/rows{self._stream}", epoch, chunk).permutation(size) + first
            self._chunk = ((epoch, chunk), rows)
        return self._chunk[1]
