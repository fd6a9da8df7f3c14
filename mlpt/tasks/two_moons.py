"""Two moons as labelled tasks (MetaLMO, Shen 2021): a point "x y", and which moon it is of. Needs no data.

`two_moons_10` to `two_moons_160` are named by their number of training points.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from mlpt.data.two_moons import GRID, HELD_OUT, Points, moons, pretraining_points, write_point
from mlpt.tasks.task import Example, Task, TaskData

SIZES = (10, 20, 40, 80, 160)
_TRAIN_SEED, _DEV_SEED = 43, 44

# dev is as small as train, to choose a checkpoint by; held_out is what is reported. The grid has every point there is.
TWO_MOONS: dict[str, Task] = {
    f"two_moons_{size}": Task(
        f"two_moons_{size}",
        "two_moons",
        "classification",
        ("0", "1"),
        ("accuracy",),
        "accuracy",
        ("x", "y", "moon"),
        ("{x} {y}", None),
        dev=("dev", "held_out"),
        test=("grid",),
        max_length=4,
    )
    for size in SIZES
}


def load_two_moons(name: str, splits: Iterable[str] | None = None) -> TaskData:
    """A `two_moons_*` task."""
    size = int(name.rsplit("_", 1)[1])
    makers: dict[str, Callable[[], list[Example]]] = {
        "train": lambda: _labelled(*moons(_TRAIN_SEED, size)),
        "dev": lambda: _labelled(*moons(_DEV_SEED, size)),
        "held_out": _held_out,
        "grid": lambda: [Example(number, write_point(point)) for number, point in enumerate(grid())],
    }
    wanted = makers if splits is None else [split for split in splits if split in makers]
    return TaskData(TWO_MOONS[name], {split: makers[split]() for split in wanted})


def _held_out() -> list[Example]:
    points, labels = pretraining_points()
    return _labelled(points[slice(*HELD_OUT)], labels[slice(*HELD_OUT)])


def grid() -> Points:
    """(4096, 2) every point of the grid, row after row: x runs fastest."""
    numbers = np.arange(GRID * GRID)
    return np.stack([numbers % GRID, numbers // GRID], axis=1).astype(np.uint8)


def _labelled(points: Points, labels: NDArray[np.int64]) -> list[Example]:
    rows = zip(points, labels.tolist(), strict=True)
    return [Example(number, write_point(point), label=label) for number, (point, label) in enumerate(rows)]
