"""Token counts of a corpus, computed once and kept in a file."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def kept_counts(file: Path, size: int, count: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """The (size,) int64 counts in `file`, or those of `count()`, which are then kept there.

    A damaged file is counted anew; where nothing can be written, counts are made each time.
    """
    with contextlib.suppress(OSError, ValueError, EOFError):
        kept = np.load(file, allow_pickle=False)
        if isinstance(kept, np.ndarray) and kept.shape == (size,) and kept.dtype == np.int64:
            return kept
    counts = count()
    with contextlib.suppress(OSError):
        _write(file, counts)
    return counts


def _write(file: Path, counts: NDArray[np.int64]) -> None:
    """At once: several ranks may count at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(handle, "wb") as stream:
            np.save(stream, counts)
        os.chmod(partial, 0o644)
        os.replace(partial, file)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def rare_tokens(counts: NDArray[np.int64], share: float, special_ids: tuple[int, ...]) -> NDArray[np.bool_]:
    """(vocabulary,) bool: the least frequent tokens, which together are `share` of the corpus's ordinary tokens.

    counts  (vocabulary,) of the corpus. Tokens that tie with the last one marked are marked too; tokens that the corpus
    lacks are marked; special ids never are.
    """
    ordinary = counts.copy()
    ordinary[list(special_ids)] = 0
    order = np.sort(ordinary[ordinary > 0])
    marked = np.zeros(len(counts), dtype=np.bool_)
    if len(order):
        enough = int(np.searchsorted(order.cumsum(), share * order.sum()))
        marked = ordinary <= order[min(enough, len(order) - 1)]
    marked[list(special_ids)] = False
    return marked
