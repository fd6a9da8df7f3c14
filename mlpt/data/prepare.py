"""Text to a prepared folder: tokenizer, blocks in Arrow shards, manifest. What `mlpt prepare` does.

The same input and settings give the same bytes, on any number of workers and wherever the shard jobs run.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import posixpath
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpt.cores import available_cores
from mlpt.data.config import OF_RUN, OF_TRAINED, DataConfig, check_known, same_tokenizer
from mlpt.data.corpora import SPLITS, CorpusFile, Piece, find_files, fingerprint, missing_splits, plan
from mlpt.data.document import Document
from mlpt.data.encoder import TextEncoder
from mlpt.data.manifest import InputEntry, Manifest, ShardEntry, SplitEntry, read_manifest, write_manifest
from mlpt.data.packing import Layout
from mlpt.data.readers import read_segment
from mlpt.data.shards import ShardJob, ShardResult, write_shards
from mlpt.data.splits import Splitting, digests
from mlpt.data.tokenizers import TRAINED, encoder_json, load_tokenizer, train_tokenizer, vocabulary_hash
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.outputs import BLOCKS, check_names, named, new_folder
from mlpt.storage.files import absolute, file_sha256, filesystem, is_local, readable_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


RunShards = Callable[[Callable[[ShardJob], ShardResult], list[ShardJob]], Iterable[ShardResult]]
Progress = Callable[[int, int], None]  # bytes of input done, and of all input

SMALL = 2 << 20  # bytes of input below which starting processes costs more than it saves
SAMPLE, SAMPLE_CUT = 1 << 18, 1 << 12  # characters that show if a loaded tokenizer knows the text, of a document's most
log = logging.getLogger(__name__)


def prepare(
    config: DataConfig,
    out: str,
    run_shards: RunShards | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Prepare `config.source` into the folder (or fsspec URI) `out`; returns what its manifest says.

    `run_shards(function, jobs)` runs the pure `function` on every job, anywhere, and gives the results in any order;
    by default a pool of `config.workers` processes does. A folder that holds the same input prepared with the same
    settings is left as it is (`Manifest.reused`). The manifest is written last: an interrupted `prepare` leaves a
    folder that doesn't open, and that the next one overwrites. With `overwrite` other prepared text in a local folder
    is replaced.

    Raises UserError for bad input, too little text, a folder with other content, a full disk.
    """
    out = absolute(named(out))
    skipped: Counter[str] = Counter()
    files = _files(config, skipped)
    settings = _recorded(config)
    source_hash = fingerprint(files)
    existing = read_manifest(out)
    if existing is not None:
        other = _difference(existing, settings, source_hash, config.tells_domains)
        if other is None:
            check_known(existing.unknown_share, config)
            log.info("%s is already prepared with these settings from this input: reused", out)
            return existing.as_reused()
        if not overwrite:
            raise UserError(f"{out} holds {other}; name another folder, or `mlpt prepare ... --overwrite`")
    shares = {split: share for split in missing_splits(files) if (share := getattr(config, f"{split}_share"))}
    pieces = plan(files, config.max_bytes, config.documents, by_hash=bool(shares))
    splitting = _splitting(config, pieces, shares)
    with _emptied(out, overwrite):
        manifest = _written(config, out, pieces, splitting, settings, source_hash, skipped, run_shards, progress)
        write_manifest(out, manifest)
    return manifest


def _written(
    config: DataConfig,
    out: str,
    pieces: list[Piece],
    splitting: Splitting,
    settings: dict[str, Any],
    source_hash: str,
    skipped: Counter[str],
    run_shards: RunShards | None,
    progress: Progress | None,
) -> Manifest:
    """Write tokenizer and shards into the emptied folder `out`; the manifest that is to be written last."""
    tokenizer = _tokenizer(config, pieces, splitting)
    tokenizer_sha256 = _save_tokenizer(tokenizer, out)
    jobs = _jobs(config, out, tokenizer, pieces, splitting)
    run = run_shards or _pool(config, sum(piece.size for piece in pieces))
    results = _collect(run(write_shards, jobs), sum(piece.size for piece in pieces), progress)
    read = InputEntry(files=_styles(pieces), skipped=skipped, repeated=sum(result.repeated for result in results))
    manifest = _manifest(config, results, tokenizer, settings, source_hash, tokenizer_sha256, read)
    _check_enough(manifest, config)
    check_known(manifest.unknown_share, config)
    return manifest


def input_digest(config: DataConfig) -> str:
    """A name for what `prepare` would make: the same input and settings give the same digest."""
    files = _files(config)
    # Not the names of blocks of earlier versions, which may have several domains under one name, or more text.
    apart = ["apart"] if config.tells_domains else []
    unpacked = ["unpacked"] if config.max_bytes is not None and any(file.packed for file in files) else []
    text = json.dumps([_recorded(config), fingerprint(files), *apart, *unpacked], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _files(config: DataConfig, skipped: Counter[str] | None = None) -> list[CorpusFile]:
    return find_files(config.named_places, config.docs_bytes or config.max_bytes, skipped)


def _recorded(config: DataConfig) -> dict[str, Any]:
    """The settings that decide what is written from an input: not how many workers write it, nor what the input is."""
    settings = config.model_dump(mode="json", exclude={*OF_RUN, "docs_bytes"})
    for key in OF_TRAINED if config.tokenizer not in TRAINED else ():
        del settings[key]
    return settings


def _difference(existing: Manifest, settings: dict[str, Any], source_hash: str, tells_domains: bool) -> str | None:
    """How prepared text differs from what is asked for; None if it does not."""
    for key, value in settings.items():
        if existing.settings.get(key) != value and not (key == "tokenizer" and same_tokenizer(value, existing)):
            return f"blocks prepared with {key}={existing.settings.get(key)}, not {value}"
    if existing.fingerprint != source_hash:
        return "blocks of other text (or of a former version of it)"
    if tells_domains and not existing.apart and len(existing.splits["train"].domains) > 1:
        return "blocks of an earlier mlpt, some of which have text of several domains under the name of one"
    return None


@contextlib.contextmanager
def _emptied(out: str, overwrite: bool) -> Iterator[None]:
    """Make the folder and remove what an interrupted `prepare` left in it; refuse a folder of something else."""
    fs, inner = filesystem(out)
    if is_local(fs):
        with new_folder(inner, BLOCKS, overwrite) as folder, readable_errors(out, "write"):
            (folder / "shards").mkdir()
            yield
        return
    if overwrite:
        raise UserError(f"--overwrite replaces folders of this machine, not {out}; name another place")
    with readable_errors(out, "write"):
        names = _names(fs, inner)
        check_names(out, names, lambda pattern: pattern in names, BLOCKS)
        for name in names:
            fs.rm(posixpath.join(inner, name), recursive=True)
        fs.makedirs(posixpath.join(inner, "shards"), exist_ok=True)
    yield


def _names(fs: Any, inner: str) -> list[str]:
    if fs.isfile(inner):
        raise UserError(f"{inner} is a file; name a folder")
    found = fs.ls(inner, detail=False) if fs.exists(inner) else []
    return sorted({posixpath.basename(path.rstrip("/")) for path in found} - {posixpath.basename(inner.rstrip("/"))})


def _splitting(config: DataConfig, pieces: list[Piece], shares: dict[str, float]) -> Splitting:
    """How training documents are split, with what stands in the splits that files are named after."""
    named = [piece for piece in pieces if shares and piece.split in ("dev", "test")]
    return Splitting(shares, config.seed, digests(itertools.chain.from_iterable(map(_documents, named))))


def _documents(piece: Piece) -> Iterator[Document]:
    return itertools.chain.from_iterable(map(read_segment, piece.segments))


def _styles(pieces: list[Piece]) -> dict[str, int]:
    """How many files hold what kind of documents."""
    files = {segment.path: segment.style for piece in pieces for segment in piece.segments}
    return dict(Counter(files.values()))


def _tokenizer(config: DataConfig, pieces: list[Piece], splitting: Splitting) -> "PreTrainedTokenizerFast":
    if config.tokenizer in TRAINED:
        size, most = (getattr(config, key) or OF_TRAINED[key] for key in ("vocab_size", "tokenizer_bytes"))
        return train_tokenizer(
            config.tokenizer, lambda: _training_texts(most, pieces, splitting), size, config.lowercase is not False
        )
    tokenizer = load_tokenizer(config.tokenizer)
    # Known soon, before hours of work; the whole text is held to it too.
    texts = [text[:SAMPLE_CUT] for text in _training_texts(SAMPLE, pieces, splitting)]
    sample = TextEncoder(encoder_json(tokenizer), "int32").encode(texts)
    unknown = sum(int((ids == tokenizer.unk_token_id).sum()) for ids in sample)
    check_known(unknown / max(1, sum(map(len, sample))), config)
    return tokenizer


def _training_texts(most: int, pieces: list[Piece], splitting: Splitting) -> Iterator[str]:
    """Training documents from the beginning of every piece, `most` characters of them in all."""
    training = [piece for piece in pieces if piece.split in (None, "train")]
    for rank, piece in enumerate(training):
        left = most * (rank + 1) // len(training) - most * rank // len(training)
        for document in _documents(piece):
            if left <= 0:
                break
            if splitting.split_of(document) == "train":
                left -= len(document.text)
                yield document.text


def _save_tokenizer(tokenizer: "PreTrainedTokenizerFast", out: str) -> str:
    """Write the tokenizer's folder below `out`; the SHA-256 of its tokenizer.json."""
    fs, inner = filesystem(posixpath.join(out, "tokenizer"))
    with tempfile.TemporaryDirectory() as folder, readable_errors(out, "write"):
        tokenizer.save_pretrained(folder)
        fs.makedirs(inner, exist_ok=True)
        for path in sorted(Path(folder).iterdir()):
            fs.put_file(str(path), posixpath.join(inner, path.name))
        return file_sha256(os.path.join(folder, "tokenizer.json"))


def _jobs(
    config: DataConfig, out: str, tokenizer: "PreTrainedTokenizerFast", pieces: list[Piece], splitting: Splitting
) -> list[ShardJob]:
    vocabulary = Vocabulary.of(tokenizer)
    encoder = encoder_json(tokenizer)
    layout = Layout(config.block_size, vocabulary.cls, vocabulary.sep, vocabulary.pad)
    dtype = _dtype(vocabulary)
    return [
        ShardJob(number, piece, out, encoder, vocabulary.unk, layout, config.packing, splitting, dtype)
        for number, piece in enumerate(pieces)
    ]


def _dtype(vocabulary: Vocabulary) -> str:
    return "uint16" if vocabulary.size <= 1 << 16 else "int32"


def _pool(config: DataConfig, size: int) -> RunShards:
    """How to run the jobs on this machine: in this process, or in a pool of fresh ones."""
    workers = config.workers or available_cores()

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
    read: InputEntry,
) -> Manifest:
    vocabulary = Vocabulary.of(tokenizer)
    return Manifest(
        settings=settings,
        fingerprint=source_hash,
        tokenizer_sha256=tokenizer_sha256,
        vocabulary_sha256=vocabulary_hash(tokenizer),
        vocabulary=vocabulary.as_json(),
        block_size=config.block_size,
        dtype=_dtype(vocabulary),
        splits={split: _split_entry(split, results) for split in SPLITS},
        apart=True,
        input=read,
    )


def _split_entry(split: str, results: list[ShardResult]) -> SplitEntry:
    shards = [shard for result in results for shard in result.shards if shard.split == split]
    return SplitEntry(
        domains=sorted({domain for shard in shards for domain in shard.domains}),
        shards=[ShardEntry(file=one.file, rows=one.rows, bytes=one.bytes, sha256=one.sha256) for one in shards],
        documents=sum(result.documents[split] for result in results),
        tokens=sum(result.tokens[split] for result in results),
        unknown=sum(result.unknown[split] for result in results),
    )


def _check_enough(manifest: Manifest, config: DataConfig) -> None:
    shares = {"train": 1.0, "dev": config.dev_share, "test": config.test_share}
    empty = [split for split, share in shares.items() if share and not manifest.splits[split].rows]
    if not empty:
        return
    documents = sum(entry.documents for entry in manifest.splits.values())
    whole_files = manifest.input is not None and "file" in manifest.input.files
    ways = ["say what separates documents in a file (documents=blank or documents=lines)"] if whole_files else []
    if documents == 1:
        # No share of one document gives a second one.
        what = f"the text is one document, which cannot be in {' and '.join(shares)}"
        ways = [*ways, "give more documents", "name files train, dev and test"]
    else:
        split, went = empty[0], manifest.splits[empty[0]].documents
        what = (
            f"too little text: {went} of {documents} documents went to {split} and don't fill one block of "
            f"{config.block_size}"
        )
        more = [] if split == "train" else [f"set a larger {split}_share", f"name a file {split}"]
        ways = [*ways, "give more text", *more]
    raise UserError(f"{what}; {', or '.join(ways)}")
