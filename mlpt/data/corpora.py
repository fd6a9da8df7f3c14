"""From what a user names (files, folders, globs, URIs, `docs`, `hub:NAME`) to bounded pieces of work.

The plan depends on the input alone, never on how many workers there are: that is why any number of them writes the
same bytes.
"""

import glob
import hashlib
import itertools
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlpt.data import docs_corpus, hub
from mlpt.data.readers import DOCUMENT_BYTES, READ_BYTES, Segment, head_style, next_start, open_bytes, open_parquet
from mlpt.data.text_sizes import gzip_size, parquet_size, parquet_sizes
from mlpt.errors import UserError, reason
from mlpt.storage.files import filesystem, is_local, readable_errors

Documents = Literal["auto", "files", "lines", "blank"]

SPLITS = ("train", "dev", "test")
SMALLEST_PIECE, LARGEST_PIECE, PIECES = 1 << 20, 256 << 20, 128  # bytes, bytes, wished number of pieces

_SUFFIXES = {
    ".txt": ("text", False),
    ".tokens": ("text", False),
    ".raw": ("text", False),
    ".txt.gz": ("text", True),
    ".jsonl": ("jsonl", False),
    ".jsonl.gz": ("jsonl", True),
    ".parquet": ("parquet", False),
}
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "test": "test",
}
HASHED_WHOLE = 1 << 30  # bytes of corpus that are hashed to know it again (a second or two)


@dataclass(frozen=True)
class CorpusFile:
    """One file of a source.

    `split`: what its name says ("train", "dev", "test"), or None. `capped`: it was made no larger than `max_bytes`
    allows, and is read to its end. `named`: its source has a domain of its own, whatever its rows say.
    """

    path: str
    kind: str
    gzipped: bool
    size: int
    domain: str
    split: str | None
    capped: bool = False
    named: bool = False

    @property
    def packed(self) -> bool:
        """Whether its size is not that of its text."""
        return self.gzipped or self.kind == "parquet"

    def text_size(self) -> int:
        """Bytes of its text, unpacked."""
        if self.kind == "parquet":
            return parquet_size(self.path)
        return gzip_size(self.path, self.size) if self.gzipped else self.size


@dataclass(frozen=True)
class Piece:
    """A bounded part of the corpus. `split`: where all of it goes, or None: its documents are split by their hash."""

    segments: tuple[Segment, ...]
    split: str | None
    size: int


def find_files(
    sources: Sequence[str | tuple[str | None, str]], max_bytes: int | None = None, skipped: Counter[str] | None = None
) -> list[CorpusFile]:
    """All files of the sources, in a fixed order; `skipped` counts the other files of folders by their suffix.

    A source is a file, a folder (searched through), a glob, any fsspec URI of these, `docs` (the embedded corpus,
    `max_bytes` of it) or `hub:NAME[:config]`; with a domain before it, (domain, source), all of it is of that domain.
    Split names in file or folder names (below the folder that was named)
    count if one of them says train (and, with domains, if all domains have the same); otherwise all files are split by
    document.

    Raises UserError for a source without files, an unknown suffix, an empty file.
    """
    found: list[CorpusFile] = []
    for domain, source in ((None, one) if isinstance(one, str) else one for one in sources):
        if source == "docs":
            files = [str(docs_corpus.collect(max_bytes and max_bytes // len(sources)))]
        elif source.startswith("hub:"):
            files = [str(path) for path in hub.download(source)]
        else:
            files = _paths(source, Counter() if skipped is None else skipped)
        described = [_describe(path, _root(source, files)) for path in files]
        described = [replace(file, capped=True) for file in described] if source == "docs" else described
        found += described if domain is None else [replace(file, domain=domain, named=True) for file in described]
    unique = _once(found)
    if not any(file.split == "train" for file in unique) or not _alike(unique):
        unique = [replace(file, split=None) for file in unique]
    return unique


def _once(found: Iterable[CorpusFile]) -> list[CorpusFile]:
    """Each file once. Raises UserError for one of two named domains."""
    files: dict[str, CorpusFile] = {}
    for file in found:
        before = files.get(file.path, file)
        if before.domain != file.domain and before.named and file.named:
            raise UserError(
                f"data.sources: both {before.domain} and {file.domain} name {file.path}; name each text once"
            )
        files[file.path] = file
    return list(files.values())


def _alike(files: Iterable[CorpusFile]) -> bool:
    """Whether every named domain has files of the same splits: else those of one would have no held-out text."""
    splits: dict[str, set[str | None]] = {}
    for file in files:
        if file.named:
            splits.setdefault(file.domain, set()).add(file.split)
    return len({frozenset(one) for one in splits.values()}) <= 1


def missing_splits(files: Iterable[CorpusFile]) -> tuple[str, ...]:
    """Which of dev and test no file name gives: they are taken out of the training documents by hash."""
    named = {file.split for file in files}
    return tuple(split for split in ("dev", "test") if split not in named)


def plan(
    files: Sequence[CorpusFile], max_bytes: int | None = None, documents: Documents = "auto", by_hash: bool = True
) -> list[Piece]:
    """Cut the corpus into pieces of SMALLEST_PIECE to LARGEST_PIECE bytes; small files share one.

    With `max_bytes`, each file gives its share of these from its beginning, in proportion to its text's size; that of
    packed files is unpacked text. A gzipped file is one piece, because it can only be read from its start.

    `documents` says what a document of a text file is: the file, a line, or what stands between blank lines. "auto":
    the file where the corpus, or the domain that a source was given, has several to train on, but for large ones with
    WikiText's titles; else, as a single file has to be cut, an article or what stands between blank lines. A file
    without any is one document where documents are split `by_hash`, because its lines may be one text; else each line
    is one. Rows of other files are documents, but for "auto" joined to articles where they are lines of WikiText.
    """
    to_train = (file for file in files if file.kind == "text" and file.split in (None, "train"))
    beside = Counter(_given_domain(file) for file in to_train)
    ready = sum(file.size for file in files if file.capped)
    texts = {file.path: file.size if max_bytes is None else file.text_size() for file in files if not file.capped}
    rest = sum(texts.values())
    share = math.inf if max_bytes is None or not rest else max(0, max_bytes - ready) / rest
    target = min(LARGEST_PIECE, max(SMALLEST_PIECE, int(ready + rest * min(1.0, share)) // PIECES))
    pieces: list[Piece] = []
    for split in (None, *SPLITS):
        group: list[Segment] = []
        size, owed = 0, 0
        for file in (one for one in files if one.split == split):
            text = texts.get(file.path, file.size)
            # The text of packed files may be longer than it seems: it is limited even where it should fit.
            whole = file.capped or share == math.inf or (share >= 1 and not file.packed)
            limit = None if whole else max(1, int(text * share))
            style = _style(file, documents, beside[_given_domain(file)] > 1, by_hash)
            if limit is not None and style == "file" and text <= DOCUMENT_BYTES:
                owed += limit  # a document is taken whole or not at all
                if owed <= 0:
                    continue
                owed, limit = owed - text, None
            for segment, bytes_ in _cut(file, limit, target, style):
                if group and size + bytes_ > target * 5 // 4:
                    pieces.append(Piece(tuple(group), split, size))
                    group, size = [], 0
                group.append(segment)
                size += bytes_
        if group:
            pieces.append(Piece(tuple(group), split, size))
    return pieces


def fingerprint(files: Sequence[CorpusFile]) -> str:
    """A hash of what the corpus holds: names and contents; above HASHED_WHOLE bytes in all, names, sizes and dates."""
    digest = hashlib.sha256()
    whole = sum(file.size for file in files) <= HASHED_WHOLE
    for file in files:
        digest.update(f"{posixpath.basename(file.path)}\0{file.size}\0{file.split}\0{file.domain}\0".encode())
        with readable_errors(file.path, "read"):
            if whole:
                with open_bytes(file.path) as stream:
                    while chunk := stream.read(READ_BYTES):
                        digest.update(chunk)
            else:
                digest.update(_version(file.path).encode())
    return digest.hexdigest()


def _version(path: str) -> str:
    """What changes when a file does: its date, or what a file system without dates has instead (an entity tag)."""
    fs, inner = filesystem(path)
    try:
        return str(fs.modified(inner))
    except NotImplementedError:
        return str(fs.ukey(inner))


def _given_domain(file: CorpusFile) -> str | None:
    return file.domain if file.named else None


def _style(file: CorpusFile, documents: Documents, several: bool, by_hash: bool) -> str:
    """What a document of the file is, as `Segment.style` says it."""
    if documents != "auto":
        return {"files": "file", "lines": "line", "blank": "blank"}[documents] if file.kind == "text" else "row"
    with readable_errors(file.path, "read"):
        found = head_style(Segment(file.path, file.kind, file.domain, gzipped=file.gzipped))
    one_document = several and by_hash and file.size <= DOCUMENT_BYTES  # its titles are its own
    if file.kind != "text" or (found == "heading" and not one_document):
        return found
    return "file" if several or (found == "line" and by_hash) else found


def _paths(source: str, skipped: Counter[str]) -> list[str]:
    fs, inner = filesystem(source)
    if not inner.strip("/") and not is_local(fs):
        raise UserError(f"{source} names no place; write for example s3://bucket/folder")
    with readable_errors(source, "read"):
        if fs.isfile(inner):
            found = [inner]
        elif fs.isdir(inner):
            paths = _below(inner) if is_local(fs) else [path for path in fs.find(inner) if not _hidden(path, inner)]
            found = [path for path in paths if _suffix(path)]
            skipped.update(posixpath.splitext(path)[1] or "without suffix" for path in paths if not _suffix(path))
        elif glob.has_magic(inner):
            found = [path for path in fs.glob(inner) if _suffix(path) and fs.isfile(path)]
        else:
            raise UserError(
                f"{source}: there is no such file or folder; check the path (the embedded corpus is 'docs')"
            )
    if not found:
        raise UserError(f"{source} holds no {', '.join(_SUFFIXES)} file; point to the folder or files of text")
    return sorted(found if is_local(fs) else [fs.unstrip_protocol(path) for path in found])


def _below(root: str) -> list[str]:
    """All files of a local folder and of folders that links in it lead to, each folder once, hidden ones left out.

    A link to a folder that `root` lies in is not followed. Raises UserError for a folder that can't be read.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {reason(error)}; its text would be missing") from error

    here = os.path.realpath(root)
    found: list[str] = []
    waiting, seen = [root], set[str]()
    while waiting:
        for folder, folders, files in os.walk(waiting.pop(0), onerror=unreadable):
            if (real := os.path.realpath(folder)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [os.path.join(folder, name) for name in files if not name.startswith(".")]
            links = [path for name in folders if os.path.islink(path := os.path.join(folder, name))]
            waiting += [path for path in links if os.path.commonpath([here, to := os.path.realpath(path)]) != to]
    return found


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in posixpath.relpath(path, root).split("/"))


def _root(source: str, files: Sequence[str]) -> str:
    """The folder below which names may carry a split: the one that was named, or the common one of a glob's files."""
    if len(files) == 1:
        return posixpath.dirname(files[0])
    fs, inner = filesystem(source)
    if not source.startswith("hub:") and fs.isdir(inner):
        return inner if is_local(fs) else fs.unstrip_protocol(inner)
    return posixpath.commonpath([posixpath.dirname(path) for path in files])


def _suffix(path: str) -> str | None:
    name = path.lower()
    return next((suffix for suffix in sorted(_SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)


def _describe(path: str, root: str) -> CorpusFile:
    suffix = _suffix(path)
    if suffix is None:
        raise UserError(f"{path}: only {', '.join(_SUFFIXES)} files can be read; convert it or name it so")
    kind, gzipped = _SUFFIXES[suffix]
    fs, inner = filesystem(path)
    with readable_errors(path, "read"):
        size = fs.size(inner)
    if not size:
        raise UserError(f"{path} is empty; remove it or give another file")
    relative = path.removeprefix(root).strip("/")
    words = [word for word in re.split(r"[^a-z]+", relative.lower()) if word in _SPLIT_WORDS]
    domain = posixpath.basename(root) or "text"  # of files named train.jsonl, valid.jsonl: their folder
    stem = posixpath.basename(path)[: -len(suffix)]
    return CorpusFile(path, kind, gzipped, size, _domain(stem, domain), _SPLIT_WORDS[words[-1]] if words else None)


def _domain(stem: str, fallback: str) -> str:
    """A file's stem without the words that only say its split or part: `wiki.train` and `wiki.valid` are one domain."""
    words = re.split(r"[._-]+", stem)
    kept = [word for word in words if word.lower() not in _SPLIT_WORDS and word.lower() != "of" and not word.isdigit()]
    return "-".join(kept) or fallback


def _cut(file: CorpusFile, limit: int | None, target: int, style: str) -> list[tuple[Segment, int]]:
    """The segments of one file and their sizes in bytes."""
    if file.kind == "parquet":
        return _cut_parquet(file, limit, target, style)
    whole = Segment(file.path, file.kind, file.domain, limit=limit, gzipped=file.gzipped, style=style, named=file.named)
    with readable_errors(file.path, "read"):
        if file.gzipped:
            return [(whole, file.size)]
        end = file.size if limit is None else min(file.size, limit)
        cuts = [0]
        while end - cuts[-1] > target * 5 // 4:
            start = next_start(file.path, "line" if file.kind == "jsonl" else whole.style, cuts[-1] + target)
            if start is None or start >= end:
                break
            cuts.append(start)
    if limit is None:
        stops: list[int | None] = [*cuts[1:], None]
        return [
            (replace(whole, start=start, stop=stop), (stop or file.size) - start)
            for start, stop in zip(cuts, stops, strict=True)
        ]
    # Only the last segment is cut short, and by whole documents.
    last = replace(whole, start=cuts[-1], limit=end - cuts[-1])
    pairs = itertools.pairwise(cuts)
    return [
        *((replace(whole, start=start, stop=stop, limit=None), stop - start) for start, stop in pairs),
        (last, end - cuts[-1]),
    ]


def _cut_parquet(file: CorpusFile, limit: int | None, target: int, style: str) -> list[tuple[Segment, int]]:
    with readable_errors(file.path, "read"):
        metadata = open_parquet(file.path).metadata
    texts = parquet_sizes(metadata)
    scale = None if limit is None else max(1.0, limit / max(1, sum(texts)))  # above 1: there is room for all of it
    cut: list[tuple[Segment, int]] = []
    start, size, text, left = 0, 0, 0, limit
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        text += texts[group]
        last = group == metadata.num_row_groups - 1 or (left is not None and text >= left)
        if size >= target or last:
            most = None if left is None or scale is None else max(1, int(min(left, text) * scale))
            segment = Segment(file.path, "parquet", file.domain, start, group + 1, most, style=style, named=file.named)
            cut.append((segment, size))
            start = group + 1
            left = None if left is None else left - text
            size = text = 0
        if last:
            break
    return cut
