"""Token classification: labels of words read off a model's outputs, and the words that it does not see.

A word's label is that of its first token; its other tokens and the special ones have none (Devlin et al., 2019, 5.3).
"""

from collections.abc import Sequence

import numpy as np

from mlpt.tasks import Example
from mlpt.tasks.features import Features

LOST = -1  # predicted of a word that has no token, because the sentence was cut before it


def predicted_labels(examples: Sequence[Example], features: Features, outputs: np.ndarray) -> list[list[int]]:
    """Of each example, the class id of each word, LOST where it has no token.

    outputs  logits of all tokens, (all tokens, labels), in the order of `features.tokens`.
    """
    assert features.words is not None
    best = outputs.argmax(axis=1)
    found = []
    for row, example in enumerate(examples):  # one row an example
        window = slice(features.offsets[row], features.offsets[row + 1])
        words, labels = features.words[window], np.full(len(example.spans), LOST, dtype=np.int64)
        labels[words[words >= 0]] = best[window][words >= 0]
        found.append(labels.tolist())
    return found


def lost_words(features: Features, examples: Sequence[Example]) -> tuple[int, int]:
    """(words that have no token in `features`, all words) of the `examples`."""
    assert features.words is not None
    words = sum(len(example.spans) for example in examples)
    return words - int((features.words >= 0).sum()), words
