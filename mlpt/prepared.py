"""The blocks of a run: found where an earlier run left them, or prepared from its text."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from mlpt.config import RunConfig
from mlpt.data.blocks import Blocks
from mlpt.data.files import cache_directory
from mlpt.data.manifest import Manifest, read_manifest
from mlpt.data.prepare import RunShards, input_digest, prepare
from mlpt.data.tokenizers import load_tokenizer
from mlpt.errors import UserError
from mlpt.reporting.display import Display


def blocks_of(config: RunConfig, folder: Path, display: Display, run_shards: RunShards | None = None) -> str:
    """The prepared blocks of a run: `data.source` if that is a prepared folder, else made from it.

    They are made in `config.blocks` or, by default, in the user's cache, where other runs on the same text find them.
    `run_shards` runs the shard jobs elsewhere than in this machine's processes. A run remembers which blocks it had;
    resuming it on other text is an error.
    """
    sources = config.data.sources
    if len(sources) == 1 and (manifest := read_manifest(sources[0])) is not None:
        manifest = manifest.as_reused()
        blocks = str(Path(sources[0]).resolve()) if Path(sources[0]).exists() else sources[0]
    else:
        blocks = config.blocks or str(cache_directory() / "blocks" / input_digest(config.data))
        with _alone(blocks), display.bytes_done("preparing text") as progress:
            manifest = prepare(config.data, blocks, run_shards, progress)
    display.say(describe(manifest, blocks))
    remembered, current = folder / "blocks.json", {"blocks": blocks, "digest": manifest.digest}
    if remembered.is_file() and json.loads(remembered.read_text())["digest"] != manifest.digest:
        raise UserError(f"the text has changed since {folder} was started; start a new run on it")
    remembered.write_text(json.dumps(current))
    _check_tokenizer(config, blocks)
    return blocks


def _check_tokenizer(config: RunConfig, blocks: str) -> None:
    """A model that came with a tokenizer goes on with blocks of that very tokenizer; an equal size proves nothing."""
    folder = config.model.pretrained
    if folder is not None and any((Path(folder) / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        Blocks.open(blocks, "train").require_tokenizer(load_tokenizer(folder))


def _alone(blocks: str) -> AbstractContextManager[Any]:
    """Lets one process at a time prepare a local folder; the next one finds it ready."""
    if "://" in blocks:
        return nullcontext()
    Path(blocks).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{blocks}.lock")


def describe(manifest: Manifest, blocks: str) -> str:
    """One line about prepared blocks."""
    rows = ", ".join(f"{split} {entry.rows:,}" for split, entry in manifest.splits.items())
    tokens = sum(entry.tokens for entry in manifest.splits.values())
    how = "found" if manifest.reused else "made"
    size = manifest.vocabulary["size"]
    return (
        f"blocks of {manifest.block_size} tokens ({how}): {rows}; {tokens:,} tokens, vocabulary {size:,}; in {blocks}"
    )
