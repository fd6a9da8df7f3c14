"""Which rows make which batch: sorted by length within a window so that little is padded, cut by a token budget.

Every optimiser step has the same number of rows; the budget only splits it into passes through the model.
"""

import numpy as np

from mlpt.randomness import numpy_generator


def epoch_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, window: int, shuffle: bool = True
) -> list[np.ndarray]:
    """The batches of one epoch, (at most `batch_size`,) row numbers each, as a pure function of the arguments.

    Rows are shuffled, then sorted by length within windows of `window` batches, cut into batches, and the batches
    shuffled. Every row comes exactly once; the last rows of the shuffle make the one shorter batch.

    shuffle  False: rows in their own order, neither shuffled nor sorted.
    """
    if not shuffle:
        return [np.arange(at, min(at + batch_size, len(lengths))) for at in range(0, len(lengths), batch_size)]
    generator = numpy_generator(seed, "finetune/order", epoch)
    order = generator.permutation(len(lengths))
    size = window * batch_size
    batches = []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        if window > 1:
            full = len(part) - len(part) % batch_size
            part = np.concatenate([_by_length(part[:full], lengths), part[full:]])
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    if window > 1:
        batches = [batches[at] for at in generator.permutation(len(batches))]
    return batches


def passes(rows: np.ndarray, lengths: np.ndarray, tokens: int, most: int | None = None) -> list[np.ndarray]:
    """`rows` split so that rows x longest row stays within `tokens` a pass; a longer single row goes alone.

    Rows that fit together stay in their order; otherwise they are sorted by length, longest first, so that each pass
    pads little and the first shows whether memory suffices. `most` limits the rows of a pass too.
    """
    most = most or len(rows)
    if len(rows) <= most and len(rows) * int(lengths[rows].max()) <= tokens:
        return [rows]
    ordered = _by_length(rows, lengths)[::-1]
    parts = []
    start = 0
    while start < len(ordered):
        count = min(most, max(1, tokens // int(lengths[ordered[start]])))
        parts.append(ordered[start : start + count])
        start += count
    return parts


def draw_subset(examples: int, count: int, seed: int) -> np.ndarray:
    """Few-sample training: `count` of `examples`, ascending, drawn by the run's seed (another subset each seed)."""
    if count >= examples:
        return np.arange(examples)
    return np.sort(numpy_generator(seed, "finetune/subset").permutation(examples)[:count])


def _by_length(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return rows[np.argsort(lengths[rows], kind="stable")]
