"""Two moons as text, the toy corpus of MetaLMO (Shen, 2021): points on a 64 x 64 grid, written as numbers.

A pretraining text is 16 points, sorted, written "x y x y ..."; a labelled text is one point, "x y".
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlpt.data.task_tokenizer import train_task_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GRID = 64
TOKENS = 34  # of a pretraining text: 16 points, the task token and the separator
NOISE = 0.10
_RANGES = ((-1.5, 2.5), (-1.0, 1.5))  # of x and y, mapped onto the grid; what lies outside is moved to its edge
_GROUP = 16
_SEED, _COUNT = 42, 1_000_000
_TEXTS = {"train": (0, 512_000), "dev": (600_000, 616_000)}  # which of the points become pretraining texts
HELD_OUT = (513_000, 514_000)  # and which are labelled points to score by
_VOCABULARY = 512  # at most

Points = NDArray[np.uint8]  # (n, 2): x and y on the grid


def moons(seed: int, count: int) -> tuple[Points, NDArray[np.int64]]:
    """`count` points and their moons, 0 or 1; each half of the points (scikit-learn's `make_moons`, shuffled)."""
    from sklearn.datasets import make_moons  # slow to import

    places, labels = make_moons(count, shuffle=True, noise=NOISE, random_state=seed)
    columns = [np.interp(places[:, axis], _RANGES[axis], (0, GRID - 0.01)) for axis in (0, 1)]
    return np.floor(np.stack(columns, axis=1)).astype(np.uint8), labels.astype(np.int64)


@lru_cache(maxsize=1)
def pretraining_points() -> tuple[Points, NDArray[np.int64]]:
    """The million points that pretraining texts and the held-out points are taken from. Do not change them."""
    return moons(_SEED, _COUNT)


def write_point(point: NDArray[np.uint8]) -> str:
    """A point as text, "x y"."""
    return f"{point[0]} {point[1]}"


def pretraining_texts(split: str) -> list[str]:
    """The 32,000 texts of "train" or the 1,000 of "dev", each of 16 points sorted by x, then y."""
    start, stop = _TEXTS[split]
    groups = pretraining_points()[0][start:stop].reshape(-1, _GROUP, 2)
    keys = groups[..., 0].astype(np.int64) * GRID + groups[..., 1]
    order = np.argsort(keys, axis=1, kind="stable")
    ordered = np.take_along_axis(groups, order[..., None], axis=1)
    return [" ".join(map(str, group)) for group in ordered.reshape(len(groups), -1).tolist()]


def train_tokenizer() -> "PreTrainedTokenizerFast":
    """A task tokenizer in which every coordinate is one token, at the beginning of a text and after a space."""

    def texts() -> Iterator[str]:
        yield from pretraining_texts("train")
        yield from map(str, range(GRID))
        yield " ".join(str(number % GRID) for number in range(2 * GRID))

    return train_task_tokenizer(texts, _VOCABULARY, min_frequency=1)


def write_corpus(folder: Path) -> tuple[list[str], str]:
    """Write texts, one a line, and tokenizer into `folder`: the sources and the tokenizer that `prepare` takes, to be
    packed with `packing: windows` into blocks of TOKENS."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for split in _TEXTS:
        path = folder / f"two_moons.{split}.txt"
        path.write_text("".join(f"{text}\n" for text in pretraining_texts(split)), encoding="utf-8")
        sources.append(str(path))
    train_tokenizer().save_pretrained(folder / "tokenizer")
    return sources, str(folder / "tokenizer")
