"""Rows of a task that are held out of training: whole passages and questions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlpt.tasks.task import Example


def rows_together(examples: Sequence[Example]) -> list[list[int]]:
    """The numbers of rows that go together: those on one passage or question; every other row is alone."""
    found: dict[tuple[str, int], list[int]] = {}
    for number, one in enumerate(examples):
        found.setdefault(("group", one.group[0]) if one.group else ("row", number), []).append(number)
    return list(found.values())


def first_rows(order: Sequence[list[int]], most: int) -> tuple[NDArray[np.int64], list[list[int]]]:
    """The rows of the first of `order` that have `most` in all, one that has too many passed over; and the others."""
    taken: list[int] = []
    rest: list[list[int]] = []
    for rows in order:
        if len(taken) + len(rows) <= most:
            taken += rows
        else:
            rest.append(rows)
    return np.array(taken, dtype=np.int64), rest
