"""Hard tokens from and to the published pickle: scores of 1 where the file marks a token, and positions above a
threshold."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlpt.data.blocks import Blocks
from mlpt.data.position_pickle import Positions, read_positions, write_positions
from mlpt.data.score_parts import begin, check_place, finish, scores_place, write_part
from mlpt.data.token_scores import Question, ScorePart, TokenScores
from mlpt.errors import UserError
from mlpt.storage.files import file_sha256
from mlpt.storage.store import Store

METRIC = "published"  # 1 at a hard position, 0 elsewhere


def import_positions(
    files: Sequence[str | Path],
    blocks: Blocks,
    out: str,
    beyond: Literal["refuse", "drop"] = "refuse",
    overwrite: bool = False,
) -> TokenScores:
    """Token scores in `out` from pickles of {block index: positions}; later files over earlier ones.

    A block's index is its row: the file must be of these very blocks. One position counts alike as shape () and (1,);
    blocks with no position, or missing from the files, have no hard token.
    beyond     a position at or after the end of its block's text: `refuse` the file, or `drop` the whole block's
               positions, which is what the published training makes of it (its lookup fails, and it masks at random).
    overwrite  earlier scores in `out` are replaced.
    """
    check_place(out, overwrite)
    found = read_positions(files)
    if outside := [index for index in found if not 0 <= index < len(blocks)]:
        raise UserError(
            f"{files[0]} marks tokens of block {outside[0]}, and {blocks.folder} has {len(blocks)} in its "
            f"{blocks.split} split: it is of other blocks"
        )
    hashes = {Path(file).name: file_sha256(str(file)) for file in files}
    question = Question.of(blocks, None, {METRIC: 0.5}, {"files": hashes, "beyond": beyond})
    fitting = _within(question, blocks, found, beyond)
    with scores_place(out, overwrite) as store:
        begin(store, question)
        finish(store, question, _parts(store, question, blocks, fitting))
    return TokenScores.open(out, blocks)


def _within(
    question: Question, blocks: Blocks, found: Mapping[int, Positions], beyond: str
) -> dict[int, NDArray[np.int64]]:
    """The positions (k,) of each block that has as many tokens; the others are refused or left out."""
    fitting = {}
    for number in range(question.parts):
        rows = question.rows_of(number)
        for row, length in zip(rows.tolist(), _lengths(blocks, rows), strict=True):
            positions = found.get(row, _NONE).reshape(-1)
            if not len(positions) or (positions.min() >= 0 and positions.max() < length):
                fitting[row] = positions
            elif beyond == "refuse":
                raise UserError(
                    f"the positions of block {row} are {positions.min()} to {positions.max()}, and it has {length} "
                    "tokens: they are of other blocks (or leave such blocks out: --beyond drop)"
                )
    return fitting


def _lengths(blocks: Blocks, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = (blocks.tokens(rows).numpy() != blocks.vocabulary.pad).sum(1)
    return lengths


def _parts(
    store: Store, question: Question, blocks: Blocks, fitting: Mapping[int, NDArray[np.int64]]
) -> Iterator[ScorePart]:
    for number in range(question.parts):
        rows = question.rows_of(number)
        marked = np.zeros((len(rows), question.block_size), dtype=np.float16)
        for place, row in enumerate(rows.tolist()):
            marked[place, fitting.get(row, _NONE)] = 1
        yield write_part(store, question, number, {METRIC: marked}, int(_lengths(blocks, rows).sum()))


_NONE: Positions = np.empty(0, dtype=np.int64)


def export_positions(
    scores: TokenScores,
    file: str | Path,
    threshold: float | None = None,
    metric: str | None = None,
    single: Literal["array", "published"] = "array",
) -> int:
    """Write the published pickle of the positions above `threshold`; how many positions there are.

    Every block of the split has an entry, as in the published file. `single`: see `write_positions`.
    """
    scores.threshold(threshold, metric)  # refused before a file is begun
    count = 0

    def items() -> Iterator[tuple[int, Positions]]:
        nonlocal count
        for part in range(scores.question.parts):
            rows = scores.question.rows_of(part)
            for row, hard in zip(rows.tolist(), scores.hard(rows, threshold, metric), strict=True):
                positions: NDArray[np.int64] = np.flatnonzero(hard).astype(np.int64)
                count += len(positions)
                yield row, positions

    write_positions(items(), file, single)
    return count
