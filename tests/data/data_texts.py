"""Texts that are made, not shipped."""

import numpy as np

WORDS = [
    "the",
    "a",
    "small",
    "red",
    "house",
    "river",
    "stone",
    "stands",
    "runs",
    "near",
    "old",
    "green",
    "hill",
    "water",
    "bridge",
    "under",
    "over",
    "with",
    "light",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """`count` different documents of 5 to 40 known words."""
    random = np.random.default_rng(seed)
    return [f"{' '.join(random.choice(WORDS, random.integers(5, 40)))} {number}." for number in range(count)]
