"""Token scores that the meta-learner made for the rows that training takes next (continuous self-evolution)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpt.storage.state import State

ROWS = "rows"  # tensor of the policy's part `guide`: (n,) int64 rows of the training split, ascending
SCORES = "scores"  # its other tensor: (n, block_size) float16, as `mlpt.data.token_scores` keeps them
THRESHOLD = "threshold"  # value of that part: scores above it are hard


class Fresh(NamedTuple):
    """rows       (n,) int64, ascending.
    scores     (n, block_size) float16, 0 at padding.
    threshold  scores above it are hard.
    """

    rows: NDArray[np.int64]
    scores: Tensor
    threshold: float

    @classmethod
    def of(cls, part: State) -> "Fresh | None":
        """What the policy's part `guide` holds; None before its first update."""
        if ROWS not in part.tensors:
            return None
        return cls(part.tensors[ROWS].numpy(), part.tensors[SCORES], float(part.values[THRESHOLD]))

    def part(self, **figures: object) -> State:
        """The policy's part; `figures` are for readers of the log."""
        values: Mapping[str, object] = {THRESHOLD: self.threshold, **figures}
        return State(values, {ROWS: torch.from_numpy(self.rows), SCORES: self.scores})

    def find(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Of `rows` (m,): which of them were scored, (m,) bool, and the scores of those, (number of them, block_size)
        float32."""
        places = np.searchsorted(self.rows, rows).clip(max=max(0, len(self.rows) - 1))
        known = self.rows[places] == rows if len(self.rows) else np.zeros(len(rows), dtype=bool)
        return torch.from_numpy(known), self.scores[torch.from_numpy(places[known])].float()
