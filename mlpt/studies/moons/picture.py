"""Decision maps as one PNG: a row for each cell, a column for each label count, 64 x 64 points of the grid each."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlpt.data.two_moons import GRID

SCALE, GAP = 2, 4  # pixels of a point, and between maps
_BLUE, _RED = np.array([44, 102, 176]), np.array([196, 60, 48])  # moon 0, moon 1
Map = NDArray[np.float64]  # (64, 64) share of seeds that say moon 1, y first
Points = NDArray[np.int64]  # (n, 3) x, y, moon


def sheet(maps: Mapping[str, Mapping[int, Map]], points: Mapping[int, Points], labels: Sequence[int]) -> bytes:
    """The PNG. White: undecided, or no such run. Dots: the training points in their moon's full colour, on black."""
    side = GRID * SCALE
    height = len(maps) * (side + GAP) + GAP
    width = len(labels) * (side + GAP) + GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    for row, by_labels in enumerate(maps.values()):
        for column, count in enumerate(labels):
            if count in by_labels:
                top, left = GAP + row * (side + GAP), GAP + column * (side + GAP)
                canvas[top : top + side, left : left + side] = _painted(by_labels[count], points[count])
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG", optimize=True)
    return file.getvalue()


def _painted(share: Map, points: Points) -> NDArray[np.uint8]:
    """One map, y upwards."""
    toward = np.where(share[..., None] > 0.5, _RED, _BLUE)
    certain = np.abs(2 * share - 1)[..., None] * 0.6
    picture = (255 * (1 - certain) + toward * certain).repeat(SCALE, 0).repeat(SCALE, 1)
    for x, y, moon in points.tolist():
        top, left = y * SCALE, x * SCALE
        picture[max(0, top - 1) : top + SCALE + 1, max(0, left - 1) : left + SCALE + 1] = 0
        picture[top : top + SCALE, left : left + SCALE] = _RED if moon else _BLUE
    return picture[::-1].astype(np.uint8)
