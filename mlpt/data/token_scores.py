"""Scores of every token of a split, beside its blocks: what `mlpt question` leaves and guided masking reads.

A folder (or URI) of Arrow files, one a range of rows and one float16 column a metric, so that readers map them and pay
2 bytes a token. `mlpt.data.score_parts` writes it.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from mlpt.data.blocks import CACHE_BYTES, Blocks, check_files, fetch
from mlpt.data.manifest import MANIFEST, ShardEntry
from mlpt.errors import UserError
from mlpt.settings import Settings
from mlpt.storage.files import absolute, filesystem, is_local, one_line
from mlpt.storage.store import Store

FORMAT = 1
QUESTION = "question.json"
AGAIN = "remove the folder and question again"
_SMALLEST_PART, _LARGEST_PART, _PARTS = 1 << 14, 1 << 24, 128  # tokens, tokens, wished number of parts


class Question(Settings):
    """What was asked of which tokens: equal questions get equal scores, whoever answers.

    blocks, vocabulary_sha256   digest of the prepared folder's manifest, hash of its tokens and ids.
    split, rows, block_size     which of its blocks, and how many.
    model                       digest of the weights that answered; None: positions that somebody else found.
    metrics                     one score each. Every score is >= 0, larger is harder, and padding scores 0.
    thresholds                  of each metric: scores above it are hard, unless a reader says otherwise.
    settings                    what else decides the scores.
    part_rows                   rows of a part (the last one has the rest).
    """

    format: int = FORMAT
    blocks: str
    vocabulary_sha256: str
    split: str
    rows: int
    block_size: int
    model: str | None
    metrics: tuple[str, ...]
    thresholds: dict[str, float]
    settings: dict[str, Any]
    part_rows: int

    @classmethod
    def of(
        cls,
        blocks: Blocks,
        model: str | None,
        thresholds: Mapping[str, float],
        settings: Mapping[str, Any],
    ) -> "Question":
        """About all rows of `blocks`, by the metrics that `thresholds` names."""
        return cls(
            blocks=blocks.manifest.digest,
            vocabulary_sha256=blocks.manifest.vocabulary_sha256,
            split=blocks.split,
            rows=len(blocks),
            block_size=blocks.block_size,
            model=model,
            metrics=tuple(thresholds),
            thresholds=dict(thresholds),
            settings=dict(settings),
            part_rows=_part_rows(len(blocks), blocks.block_size),
        )

    @property
    def digest(self) -> str:
        """A name for this very question; every part carries it."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.rows // self.part_rows)

    def rows_of(self, part: int) -> NDArray[np.int64]:
        """The rows that a part holds."""
        return np.arange(part * self.part_rows, min(self.rows, (part + 1) * self.part_rows), dtype=np.int64)


class ScorePart(Settings):
    """One committed part: its file, and how many of its tokens are no padding."""

    number: int
    tokens: int
    entry: ShardEntry


class ScoresManifest(Settings):
    """`manifest.json`, written last: a folder without one holds no scores yet."""

    question: Question
    parts: list[ScorePart]

    @property
    def tokens(self) -> int:
        """Tokens that were scored, padding left out."""
        return sum(part.tokens for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.entry.bytes for part in self.parts)


class TokenScores:
    """The scores of one split, mapped into memory. Picklable: another process opens the files anew."""

    def __init__(self, folder: str, manifest: ScoresManifest):
        self.folder, self.manifest, self.question = folder, manifest, manifest.question
        self._local = is_local(filesystem(folder)[0])
        self._open: dict[int, dict[str, NDArray[np.float16]]] = {}

    @classmethod
    def open(cls, path: str, blocks: Blocks | None = None, model: str | None = None) -> "TokenScores":
        """The scores in a folder or at a URI.

        blocks  the blocks they are to be read with; None: not checked.
        model   the digest of the weights they are to come from (`mlpt.questioning.model_digest`); None: any.

        Raises UserError in one line: no scores there, an unfinished questioning, a part that is missing, truncated or
        (hashed up to 1 GB) changed; other blocks, another vocabulary, another model.
        """
        path = absolute(path)
        store = Store(path)
        text = store.read(MANIFEST)
        if text is None:
            if store.read(QUESTION) is not None:
                raise UserError(f"{path} is not finished; the command that began it goes on")
            raise UserError(f"{path} holds no token scores; make them with mlpt question MODEL BLOCKS --out FOLDER")
        scores = cls(path, parse(ScoresManifest, text, f"{path}/{MANIFEST}"))
        scores.require(blocks, model)
        if scores._local:
            check_files(path, [part.entry for part in scores.manifest.parts], AGAIN)
        return scores

    def require(self, blocks: Blocks | None, model: str | None) -> None:
        """Raise UserError unless these are scores of `blocks` by `model` (each None: anything goes)."""
        asked = self.question
        if blocks is not None:
            if asked.vocabulary_sha256 != blocks.manifest.vocabulary_sha256:
                raise UserError(f"{self.folder} scores tokens of another vocabulary than {blocks.folder}; {_OTHER}")
            if asked.blocks != blocks.manifest.digest:
                raise UserError(f"{self.folder} scores other blocks than those in {blocks.folder}; {_OTHER}")
        if model is not None and asked.model != model:
            raise UserError(f"{self.folder} has the scores of another model; {_OTHER}")

    def __len__(self) -> int:
        return self.question.rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def metric(self, name: str | None = None) -> str:
        """`name`, or the first metric. Raises UserError for one that was not scored."""
        known = self.question.metrics
        if name is not None and name not in known:
            raise UserError(f"{self.folder} has no metric '{name}'; it has {', '.join(known)}")
        return known[0] if name is None else name

    def scores(self, rows: NDArray[np.int64], metric: str | None = None) -> NDArray[np.float16]:
        """(n, block_size) float16 of `rows` (n,), in that order; 0 at padding."""
        name, size, opened = self.metric(metric), self.question.part_rows, self._open
        wanted = np.asarray(rows).tolist()
        if wanted and not (min(wanted) >= 0 and max(wanted) < len(self)):
            raise IndexError(f"rows {min(wanted)}..{max(wanted)} of {len(self)}")
        out = np.empty((len(wanted), self.question.block_size), dtype=np.float16)
        for place, row in enumerate(wanted):  # row by row: a batch is spread over about as many parts as it has rows
            part = row // size
            out[place] = (opened.get(part) or self._map(part))[name][row - part * size]
        return out

    def hard(
        self, rows: NDArray[np.int64], threshold: float | None = None, metric: str | None = None
    ) -> NDArray[np.bool_]:
        """(n, block_size) bool: where the stored score is above `threshold` (>= 0; None: the metric's own).

        Scores are kept to 11 bits: one within 0.05 % of the threshold may have been rounded to its other side.
        """
        name = self.metric(metric)
        return self.scores(rows, name).view(np.uint16) > _bits_at_most(self.threshold(threshold, name))

    def threshold(self, threshold: float | None, metric: str | None = None) -> float:
        """`threshold`, or the metric's own. Raises UserError for a negative one: padding, at 0, would be hard."""
        chosen = self.question.thresholds[self.metric(metric)] if threshold is None else threshold
        if not 0 <= chosen < float("inf"):
            raise UserError(f"a threshold of {chosen:g} is not a number from 0 up; scores begin at 0")
        return chosen

    def share(self, threshold: float | None = None, metric: str | None = None) -> float:
        """The share of the tokens (padding left out) above `threshold`; 2 bytes a token are read."""
        name = self.metric(metric)
        above = _bits_at_most(self.threshold(threshold, name))
        hard = sum(int((column.view(np.uint16) > above).sum()) for column in self._columns(name))
        return hard / max(1, self.manifest.tokens)

    def threshold_of(self, share: float, metric: str | None = None) -> float:
        """The lowest stored score that leaves at most `share` (0..1) of the tokens above it."""
        bins = np.zeros(1 << 15, dtype=np.int64)  # float16 from 0 up, by its bits: an exact histogram
        for column in self._columns(self.metric(metric)):
            bins += np.bincount(column.reshape(-1).view(np.uint16), minlength=len(bins))
        above = bins.sum() - bins.cumsum()
        first = int(np.argmax(above <= share * self.manifest.tokens))
        return float(np.uint16(first).view(np.float16))

    def warning(self, threshold: float | None = None, metric: str | None = None) -> str | None:
        """A line for people where fewer than one position in a hundred rows is hard; None otherwise."""
        share = self.share(threshold, metric)
        a_row = share * self.manifest.tokens / max(1, len(self))
        if a_row >= 0.01:
            return None
        return (
            f"only {share:.4%} of the tokens score above {self.threshold(threshold, metric):g} "
            f"({self.metric(metric)}), {100 * a_row:.2g} in a hundred rows; lower the threshold"
        )

    def _columns(self, metric: str) -> Iterable[NDArray[np.float16]]:
        return ((self._open.get(part) or self._map(part))[metric] for part in range(self.question.parts))

    def _map(self, number: int) -> dict[str, NDArray[np.float16]]:
        entry = self.manifest.parts[number].entry
        path = posixpath.join(self.folder, entry.file)
        path = filesystem(path)[1] if self._local else str(fetch(path, entry, CACHE_BYTES, AGAIN))
        try:
            batch = pa.ipc.open_file(pa.memory_map(path)).get_batch(0)
            length = self.question.block_size
            self._open[number] = {
                name: batch.column(name).flatten().to_numpy(zero_copy_only=True).reshape(-1, length)
                for name in self.question.metrics
            }
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} is not a whole part ({one_line(error)}); {AGAIN}") from error
        return self._open[number]


_OTHER = "question these blocks with mlpt question MODEL BLOCKS --out FOLDER"


def _bits_at_most(threshold: float) -> np.uint16:
    """The bits of the largest float16 that is <= threshold. From 0 up, float16 numbers are ordered as their bits."""
    nearest = np.float16(min(threshold, 65504.0))
    if float(nearest) > threshold:
        nearest = np.nextafter(nearest, np.float16(0))
    return nearest.view(np.uint16)


def _part_rows(rows: int, length: int) -> int:
    tokens = min(_LARGEST_PART, max(_SMALLEST_PART, rows * length // _PARTS))
    return max(1, tokens // length)


def parse(kind: Any, text: bytes, where: str) -> Any:
    """A `Question` or a `ScoresManifest` from its JSON. Raises UserError for damage and for another format."""
    try:
        parsed = kind.model_validate_json(text)
    except (ValidationError, ValueError) as error:
        raise UserError(f"{where} is damaged; {AGAIN}") from error
    asked = parsed.question if isinstance(parsed, ScoresManifest) else parsed
    if asked.format != FORMAT:
        raise UserError(f"{where} has format {asked.format}, this mlpt reads {FORMAT}; {AGAIN}")
    return parsed
