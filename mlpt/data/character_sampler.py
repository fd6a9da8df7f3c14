"""Rows drawn in proportion to the characters they hold, as MetaLMO draws its windows (Shen, 2021).

Drawing a character of the corpus and taking the window around it is drawing a window by its number of characters: with
those counted once, no article need be read or tokenised to draw.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from mlpt.data.blocks import Blocks
from mlpt.errors import UserError
from mlpt.randomness import numpy_generator
from mlpt.storage.files import cache_directory, readable_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROWS = 1 << 14  # read at a time
_CHUNK = 1024  # rows between two sums that are kept in memory


class CharacterSampler:
    """The endless stream of rows drawn with replacement (`mlpt.data.sources.Walk`).

    counts      (rows,) uint32 characters of each row, as `character_counts` gives them. It may be memory-mapped: one
                number for 1,024 rows is all that is kept.
    batch_size  rows that are drawn at a time, from one address.
    seed        names the stream.
    """

    def __init__(self, counts: NDArray[np.uint32], batch_size: int, seed: int):
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size} is not positive; a batch holds at least one row")
        self.counts, self.batch_size, self.seed = counts, batch_size, seed
        sums = [counts[start : start + _CHUNK].sum(dtype=np.int64) for start in range(0, len(counts), _CHUNK)]
        self._ends = np.cumsum(sums, dtype=np.int64)  # characters up to the end of each chunk
        if not len(sums) or self._ends[-1] == 0:
            raise UserError("there is no text to draw windows from; prepare more")

    @property
    def characters(self) -> int:
        """Of all rows."""
        return int(self._ends[-1])

    def take(self, position: int, count: int) -> NDArray[np.int64]:
        """`count` rows from a position of the endless stream on: (count,) int64."""
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            batch, place = divmod(position, self.batch_size)
            drawn = numpy_generator(self.seed, "character sampler", batch).integers(
                self.characters, size=self.batch_size
            )
            part = drawn[place : place + count]
            parts.append(np.array([self.row_of(character) for character in part.tolist()], dtype=np.int64))
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts)

    def row_of(self, character: int) -> int:
        """The row that holds a character, counted from the first character of row 0."""
        chunk = int(np.searchsorted(self._ends, character, side="right"))
        before = int(self._ends[chunk - 1]) if chunk else 0
        ends = np.cumsum(self.counts[chunk * _CHUNK : (chunk + 1) * _CHUNK], dtype=np.int64)
        return chunk * _CHUNK + int(np.searchsorted(ends, character - before, side="right"))


def character_counts(blocks: Blocks, cache: Path | None = None) -> NDArray[np.uint32]:
    """(rows,) the characters of each block, memory-mapped from a file that is made on first use.

    cache  the folder of that file; None: the user's cache. It is named by the blocks' digest.
    """
    path = (cache or cache_directory() / "characters") / f"{blocks.manifest.digest}-{blocks.split}.npy"
    if not path.exists():
        lengths = token_characters(blocks.tokenizer())
        partial = path.with_suffix(f".{os.getpid()}.npy")
        with readable_errors(str(path), "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            counts = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint32, shape=(len(blocks),))
            for start in range(0, len(blocks), _ROWS):
                rows = np.arange(start, min(start + _ROWS, len(blocks)))
                counts[rows] = lengths[blocks.tokens(rows).numpy()].sum(axis=1)
            counts.flush()
            os.replace(partial, path)
    return np.load(path, mmap_mode="r")


def token_characters(tokenizer: "PreTrainedTokenizerFast") -> NDArray[np.uint32]:
    """(vocabulary,) characters of each token, 0 of special ones.

    Of a byte-level token, the characters that begin in it: a character of several bytes counts once, wherever it is
    cut. Of others, the letters of the token; spaces that the tokenizer drops are in no token.
    """
    lengths = np.zeros(len(tokenizer), dtype=np.uint32)
    special = set(tokenizer.all_special_ids)
    count = _begun if _is_byte_level(tokenizer) else _letters
    for token, number in tokenizer.get_vocab().items():
        if number not in special:
            lengths[number] = count(token)
    return lengths


def _is_byte_level(tokenizer: Any) -> bool:
    return "ByteLevel" in type(tokenizer.backend_tokenizer.decoder).__name__


def _letters(token: str) -> int:
    return len(token.removeprefix("##"))


def _begun(token: str) -> int:
    """A byte that goes on with a character is 0b10......"""
    return sum(_BYTES[letter] & 0xC0 != 0x80 for letter in token)


def _byte_alphabet() -> dict[str, int]:
    """The byte that each letter of byte-level tokens stands for: printable bytes for themselves, the others in order
    from U+0100 on."""
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    own = {chr(byte): byte for byte in range(256) if chr(byte) in letters}
    others = [byte for byte in range(256) if chr(byte) not in own]
    return own | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = _byte_alphabet()
