"""The manifest of a prepared folder: what was prepared from what, with which tokenizer, into which shards."""

import hashlib
import json
import posixpath
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError

from mlpt.errors import UserError
from mlpt.settings import Settings
from mlpt.storage.files import filesystem, readable_errors

MANIFEST = "manifest.json"
FORMAT = 1


class ShardEntry(Settings):
    """One Arrow file of a split: name below the folder, rows, size in bytes, SHA-256."""

    file: str
    rows: int
    bytes: int
    sha256: str


class InputEntry(Settings):
    """What was read: `files` by what a document of theirs is, other files of the folders by suffix, and how many
    training documents were left out because they stand in a split that a file is named after."""

    files: dict[str, int]
    skipped: dict[str, int]
    repeated: int


class SplitEntry(Settings):
    """One split: its shards and domains, how many documents and tokens (without special ones) went into it, and how
    many of these the tokenizer did not know."""

    domains: list[str]
    shards: list[ShardEntry]
    documents: int
    tokens: int
    unknown: int = 0

    @property
    def rows(self) -> int:
        """Blocks of the split."""
        return sum(shard.rows for shard in self.shards)


class Manifest(Settings):
    """`manifest.json`, written last: a folder that has none is not prepared."""

    format: int = FORMAT
    settings: dict[str, Any]
    fingerprint: str = Field(description="hash of the input")
    tokenizer_sha256: str = Field(description="hash of tokenizer/tokenizer.json")
    vocabulary_sha256: str = Field(description="hash of every token with its id")
    vocabulary: dict[str, Any] = Field(description="size and special ids")
    block_size: int
    dtype: str
    splits: dict[str, SplitEntry]
    apart: bool = Field(default=False, description="whether blocks that hold several domains belong to none of them")
    input: InputEntry | None = Field(default=None, description="what was read, for people")
    _reused: bool = PrivateAttr(default=False)

    @property
    def digest(self) -> str:
        """A name for these very blocks: equal manifests list equal shards, by their hashes."""
        for_people: Any = {"input": True, "apart": True, "splits": {split: {"unknown"} for split in self.splits}}
        # Sorted, as the keys of a manifest that was read back are.
        content = json.dumps(self.model_dump(mode="json", exclude=for_people), sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    @property
    def unknown_share(self) -> float:
        """Of all tokens, those that the tokenizer did not know."""
        tokens = sum(entry.tokens for entry in self.splits.values())
        return sum(entry.unknown for entry in self.splits.values()) / max(1, tokens)

    @property
    def reused(self) -> bool:
        """True when `prepare` found this folder ready, with the same settings and input."""
        return self._reused

    def as_reused(self) -> "Manifest":
        """A copy that says so."""
        copy = self.model_copy()
        copy._reused = True
        return copy


def read_manifest(folder: str) -> Manifest | None:
    """The manifest of a prepared folder, None if there is none; UserError if it is damaged."""
    path = posixpath.join(folder, MANIFEST)
    fs, inner = filesystem(path)
    with readable_errors(path, "read"):
        if not fs.exists(inner):
            return None
        raw = fs.cat_file(inner)
    try:
        manifest = Manifest.model_validate(json.loads(raw))
    except (ValueError, ValidationError) as error:
        raise UserError(f"{path} is damaged; remove the folder and prepare it again") from error
    if manifest.format != FORMAT:
        raise UserError(f"{path} has format {manifest.format}, this mlpt reads {FORMAT}; prepare the folder again")
    return manifest


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Write the manifest at once: a reader sees all of it or none."""
    path = posixpath.join(folder, MANIFEST)
    fs, inner = filesystem(path)
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
    with readable_errors(path, "write"):
        fs.pipe_file(f"{inner}.unfinished", text.encode())
        fs.mv(f"{inner}.unfinished", inner)
