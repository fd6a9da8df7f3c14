"""Text to a prepared folder: tokenizer, blocks in Arrow shards, manifest. What `mlpt prepare` does.

The same input and settings give the same bytes, on any number of workers and wherever the shard jobs run.
"""

import hashlib
import itertools
import json
import logging
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from mlpt.data.corpora import SPLITS, CorpusFile, Piece, find_files, fingerprint, missing_splits, plan
from mlpt.data.files import absolute, filesystem, readable_errors
from mlpt.data.manifest import Manifest, ShardEntry, SplitEntry, read_manifest, write_manifest
from mlpt.data.packing import Layout
from mlpt.data.readers import read_segment
from mlpt.data.shards import ShardJob, ShardResult, split_of, write_shards
from mlpt.errors import UserError
from mlpt.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mlpt.data.vocabulary import Vocabulary

RunShards = Callable[[Callable[[ShardJob], ShardResult], list[ShardJob]], Iterable[ShardResult]]
Progress = Callable[[int, int], None]  # bytes of input done, and of all input

SMALL = 2 << 20  # bytes of input below which starting processes costs more than it saves
log = logging.getLogger(__name__)


class DataConfig(Settings):
    """What to prepare, and how."""

    source: str | list[str] = Field(
        default="docs", description="files, folders, globs, URIs, 'docs' or 'hub:NAME[:config]'"
    )
    tokenizer: str = Field(
        default="wordpiece",
        description="'wordpiece', 'bpe' or 'task_bpe' (MetaLMO's) to train one; or a folder, file or hub name",
    )
    vocab_size: int = Field(default=8192, gt=0, description="of a trained tokenizer")
    lowercase: bool = Field(default=True, description="of a trained WordPiece")
    tokenizer_bytes: int = Field(
        default=32 << 20, gt=0, description="text that a tokenizer is trained on, spread over the input"
    )
    block_size: int = Field(default=128, ge=4, le=65535, description="tokens a block, special ones included")
    packing: Literal["full", "document", "windows", "kd"] = Field(
        default="full",
        description="no padding; one block a document; whole documents in blocks of their own; or paragraph pairs as "
        "TAMT-KD makes them",
    )
    dev_share: float = Field(
        default=0.05, ge=0, lt=1, description="of the documents, where no file is named dev (or valid)"
    )
    test_share: float = Field(default=0.05, ge=0, lt=1, description="of the documents, where no file is named test")
    max_bytes: int | None = Field(default=None, gt=0, description="of text to use")
    docs_bytes: int | None = Field(default=None, gt=0, description="of the embedded corpus, where 'docs' is a source")
    seed: int = Field(default=0, ge=0, lt=2**63, description="which documents go to dev and test")
    workers: int | None = Field(default=None, ge=1, description="processes; default: one a CPU core")

    @field_validator("source")
    @classmethod
    def _some_source(cls, source: str | list[str]) -> str | list[str]:
        if not source or not all([source] if isinstance(source, str) else source):
            raise ValueError("name at least one file, folder or 'docs'")
        return source

    @model_validator(mode="after")
    def _shares_leave_training_text(self) -> "DataConfig":
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share and test_share leave no text to train on")
        return self

    @property
    def sources(self) -> list[str]:
        """`source` as a list."""
        return [self.source] if isinstance(self.source, str) else list(self.source)


def prepare(
    config: DataConfig, out: str, run_shards: RunShards | None = None, progress: Progress | None = None
) -> Manifest:
    """Prepare `config.source` into the folder (or fsspec URI) `out`; returns what its manifest says.

    `run_shards(function, jobs)` runs the pure `function` on every job, anywhere, and gives the results in any order;
    by default a pool of `config.workers` processes does. A folder that holds the same input prepared with the same
    settings is left as it is (`Manifest.reused`). The manifest is written last: an interrupted `prepare` leaves a
    folder that doesn't open, and that the next one overwrites.

    Raises UserError for bad input, too little text, a folder with other content, a full disk.
    """
    out = absolute(out)
    files = _files(config)
    settings = _recorded(config)
    source_hash = fingerprint(files)
    existing = read_manifest(out)
    if existing is not None:
        _check_same(existing, settings, source_hash, out)
        log.info("%s is already prepared with these settings from this input: reused", out)
        return existing.as_reused()
    shares = {split: share for split in missing_splits(files) if (share := getattr(config, f"{split}_share"))}
    pieces = plan(files, config.max_bytes)
    _clear(out)

    tokenizer = _tokenizer(config, pieces, shares)
    tokenizer_sha256 = _save_tokenizer(tokenizer, out)
    jobs = _jobs(config, out, tokenizer, pieces, shares)
    run = run_shards or _pool(config, sum(piece.size for piece in pieces))
    results = _collect(run(write_shards, jobs), sum(piece.size for piece in pieces), progress)
    manifest = _manifest(config, results, tokenizer, settings, source_hash, tokenizer_sha256)
    _check_enough(manifest, config)
    write_manifest(out, manifest)
    return manifest


def input_digest(config: DataConfig) -> str:
    """A name for what `prepare` would make: the same input and settings give the same digest."""
    source_hash = fingerprint(_files(config))
    text = json.dumps([_recorded(config), source_hash], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _files(config: DataConfig) -> list[CorpusFile]:
    return find_files(config.sources, config.docs_bytes or config.max_bytes)


def _recorded(config: DataConfig) -> dict[str, Any]:
    """The settings that decide what is written from an input: not how many workers write it, nor what the input is."""
    settings = config.model_dump(mode="json", exclude={"workers", "source", "docs_bytes"})
    if config.tokenizer not in ("wordpiece", "bpe", "task_bpe"):
        for key in ("vocab_size", "lowercase", "tokenizer_bytes"):
            del settings[key]
    return settings


def _check_same(existing: Manifest, settings: dict[str, Any], source_hash: str, out: str) -> None:
    for key, value in settings.items():
        if existing.settings.get(key) != value:
            raise UserError(
                f"{out} holds blocks prepared with {key}={existing.settings.get(key)}, not {value}; choose another "
                "folder or remove it"
            )
    if existing.fingerprint != source_hash:
        raise UserError(
            f"{out} holds blocks of other text (or of a former version of it); choose another folder or remove it"
        )


def _clear(out: str) -> None:
    """Make the folder, and remove what an interrupted `prepare` left in it; refuse a folder of something else."""
    fs, inner = filesystem(out)
    with readable_errors(out, "write"):
        if fs.isfile(inner):
            raise UserError(f"{out} is a file; name a folder")
        fs.makedirs(inner, exist_ok=True)
        found = fs.ls(inner, detail=False) if fs.exists(inner) else []  # object stores have no empty folders
        names = {posixpath.basename(path.rstrip("/")) for path in found}
        foreign = names - {"shards", "tokenizer", "manifest.json.unfinished"}
        if foreign:
            raise UserError(f"{out} is not empty (it holds {min(foreign)}); name a new folder")
        for name in names:
            fs.rm(posixpath.join(inner, name), recursive=True)
        fs.makedirs(posixpath.join(inner, "shards"), exist_ok=True)


def _tokenizer(config: DataConfig, pieces: list[Piece], shares: dict[str, float]) -> "PreTrainedTokenizerFast":
    # Imported here: the processes of the pool import this module's package, and need no transformers.
    from mlpt.data.tokenizers import TRAINED, load_tokenizer, train_tokenizer

    if config.tokenizer not in TRAINED:
        return load_tokenizer(config.tokenizer)
    return train_tokenizer(
        config.tokenizer, lambda: _training_texts(config, pieces, shares), config.vocab_size, config.lowercase
    )


def _training_texts(config: DataConfig, pieces: list[Piece], shares: dict[str, float]) -> Iterator[str]:
    """Training documents from the beginning of every piece, `tokenizer_bytes` of them in all."""
    training = [piece for piece in pieces if piece.split in (None, "train")]
    for rank, piece in enumerate(training):
        left = config.tokenizer_bytes * (rank + 1) // len(training) - config.tokenizer_bytes * rank // len(training)
        for document in itertools.chain.from_iterable(map(read_segment, piece.segments)):
            if left <= 0:
                break
            if not shares or split_of(document.text, shares, config.seed) == "train":
                left -= len(document.text)
                yield document.text


def _save_tokenizer(tokenizer: "PreTrainedTokenizerFast", out: str) -> str:
    """Write the tokenizer's folder below `out`; the SHA-256 of its tokenizer.json."""
    from mlpt.data.blocks import file_sha256

    fs, inner = filesystem(posixpath.join(out, "tokenizer"))
    with tempfile.TemporaryDirectory() as folder, readable_errors(out, "write"):
        tokenizer.save_pretrained(folder)
        fs.makedirs(inner, exist_ok=True)
        for path in sorted(Path(folder).iterdir()):
            fs.put_file(str(path), posixpath.join(inner, path.name))
        return file_sha256(os.path.join(folder, "tokenizer.json"))


def _jobs(
    config: DataConfig, out: str, tokenizer: "PreTrainedTokenizerFast", pieces: list[Piece], shares: dict[str, float]
) -> list[ShardJob]:
    from mlpt.data.tokenizers import encoder_json

    vocabulary = _vocabulary(tokenizer)
    encoder = encoder_json(tokenizer)
    layout = Layout(config.block_size, vocabulary.cls, vocabulary.sep, vocabulary.pad)
    dtype = _dtype(vocabulary)
    return [
        ShardJob(number, piece, out, encoder, layout, config.packing, shares, config.seed, dtype)
        for number, piece in enumerate(pieces)
    ]


def _vocabulary(tokenizer: "PreTrainedTokenizerFast") -> "Vocabulary":
    from mlpt.data.vocabulary import Vocabulary

    return Vocabulary.of(tokenizer)


def _dtype(vocabulary: "Vocabulary") -> str:
    return "uint16" if vocabulary.size <= 1 << 16 else "int32"


def _pool(config: DataConfig, size: int) -> RunShards:
    """How to run the jobs on this machine: in this process, or in a pool of fresh ones."""
    workers = config.workers or len(os.sched_getaffinity(0))

    def run(function: Callable[[ShardJob], ShardResult], jobs: list[ShardJob]) -> Iterator[ShardResult]:
        if min(workers, len(jobs)) == 1 or size < SMALL:
            return map(function, jobs)
        return _in_processes(function, jobs, workers)

    return run


def _in_processes(
    function: Callable[[ShardJob], ShardResult], jobs: list[ShardJob], workers: int
) -> Iterator[ShardResult]:
    """Run the jobs in fresh processes that, unlike multiprocessing's, don't import the caller's main script again."""
    from joblib import Parallel, delayed

    parallel = Parallel(
        n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs", max_nbytes=None
    )
    return parallel(delayed(_one_threaded)(function, job) for job in jobs)


def _one_threaded(function: Callable[[ShardJob], ShardResult], job: ShardJob) -> ShardResult:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes of the pool are the parallelism
    return function(job)


def _collect(results: Iterable[ShardResult], total: int, progress: Progress | None) -> list[ShardResult]:
    collected: list[ShardResult] = []
    done = 0
    for result in results:
        collected.append(result)
        done += result.size
        if progress is not None:
            progress(done, total)
    return sorted(collected, key=lambda result: result.number)


def _manifest(
    config: DataConfig,
    results: list[ShardResult],
    tokenizer: "PreTrainedTokenizerFast",
    settings: dict[str, Any],
    source_hash: str,
    tokenizer_sha256: str,
) -> Manifest:
    from mlpt.data.tokenizers import vocabulary_hash

    vocabulary = _vocabulary(tokenizer)
    return Manifest(
        settings=settings,
        fingerprint=source_hash,
        tokenizer_sha256=tokenizer_sha256,
        vocabulary_sha256=vocabulary_hash(tokenizer),
        vocabulary=vocabulary.as_json(),
        block_size=config.block_size,
        dtype=_dtype(vocabulary),
        splits={split: _split_entry(split, results) for split in SPLITS},
    )


def _split_entry(split: str, results: list[ShardResult]) -> SplitEntry:
    shards = [shard for result in results for shard in result.shards if shard.split == split]
    return SplitEntry(
        domains=sorted({domain for shard in shards for domain in shard.domains}),
        shards=[ShardEntry(file=one.file, rows=one.rows, bytes=one.bytes, sha256=one.sha256) for one in shards],
        documents=sum(result.documents[split] for result in results),
        tokens=sum(result.tokens[split] for result in results),
    )


def _check_enough(manifest: Manifest, config: DataConfig) -> None:
    train, dev = manifest.splits["train"], manifest.splits["dev"]
    if not train.rows:
        raise UserError(
            f"too little text: {train.tokens} training tokens don't fill one block of {config.block_size}; give more"
        )
    if config.dev_share and not dev.rows:
        raise UserError(
            f"too little text: {dev.documents} of {train.documents + dev.documents} documents went to dev and don't "
            f"fill one block of {config.block_size}; give more text, a larger dev_share, or a file named dev"
        )
