"""What training, evaluation and meta-learning need of a data set; `mlpt.data.blocks.Blocks` is the real one."""

from typing import Protocol

import numpy as np
from torch import Tensor


class Rows(Protocol):
    """Numbered rows of token ids, all of one length."""

    def __len__(self) -> int: ...

    def tokens(self, rows: np.ndarray) -> Tensor:
        """(len(rows), length) int64 on the CPU."""
        ...
