"""Rows as they are stored, on their way to an objective, and what can give them."""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Batch:
    """Some rows of one split of prepared text, on the CPU.

    tokens  (batch, length) int64, padded behind where a row is shorter.
    rows    (batch,) int64, the rows' numbers in their split.
    split   the split that `rows` number.
    arm     the arm that they were drawn for.
    labels  of labelled rows: (batch,) int64 class ids or float32 scores; None: text.
    types   of labelled rows that are pairs: (batch, length) int64, 1 in the second text; None: one text.
    documents  (batch, length) int64, which document of its row a token belongs to; None: a row is one to the model.
    """

    tokens: Tensor
    rows: NDArray[np.int64]
    split: Split = "train"
    arm: str = ""
    labels: Tensor | None = None
    types: Tensor | None = None
    documents: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor, split: Split = "train") -> "Batch":
        """The first rows of a split, given their tokens."""
        return cls(tokens, np.arange(len(tokens)), split)

    def for_arm(self, arm: str) -> "Batch":
        """The same rows, drawn for `arm`."""
        return replace(self, arm=arm)

    def __len__(self) -> int:
        return len(self.tokens)


class Rows(Protocol):
    """Numbered rows, all of one length; `mlpt.data.blocks.Blocks` is the real one."""

    def __len__(self) -> int: ...

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The rows of these numbers, in that order."""
        ...


@dataclass(frozen=True)
class Source:
    """Where rows come from: training, meta-dev (selection and meta-learning) and test (reported) rows."""

    train: Rows
    dev: Rows
    test: Rows

    def split(self, name: Split) -> Rows:
        """One of the three."""
        rows: Rows = getattr(self, name)
        return rows


@dataclass(frozen=True)
class Arm:
    """What a mixture has probabilities over: rows of a source, trained by an objective.

    name       as people write it: `mlm`, `mlm@legal`.
    objective  name among the model's objectives.
    source     name among the run's sources.
    """

    name: str
    objective: str
    source: str
