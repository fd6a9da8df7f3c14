"""Writing scores of tokens: parts that are whole or absent, by any number of workers, and a manifest at the end.

`question.json` says first what is asked. Every part carries the digest of that question, so that an interrupted
questioning goes on with the parts that answer it. `manifest.json`, written last, makes the folder readable.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlpt.data.manifest import MANIFEST, ShardEntry
from mlpt.data.token_scores import QUESTION, Question, ScorePart, ScoresManifest, parse
from mlpt.errors import UserError
from mlpt.outputs import SCORES, check_folder, check_names, growing_folder, leased, named
from mlpt.storage.files import filesystem, is_local
from mlpt.storage.store import Store

Scores = Mapping[str, NDArray[np.float16]]  # metric -> (rows, block_size)


def check_place(out: str, overwrite: bool = False) -> None:
    """Raise UserError where scores may not go: the folder or URI `out` holds anything but scores of tokens."""
    fs, inner = filesystem(named(out))
    if is_local(fs):
        check_folder(inner, SCORES, overwrite, resumes=True)
        return
    if overwrite:
        raise UserError(f"--overwrite replaces folders of this machine, not {out}; name another place")
    store = Store(out)
    check_names(out, store.names(""), store.has, SCORES, resumes=True)


@contextlib.contextmanager
def scores_place(out: str, overwrite: bool = False) -> Iterator[Store]:
    """Where the scores of one question grow: new or empty, or with some of them, for `begin` to see whether they are
    of the same question. A folder is this process's alone. `overwrite`: earlier scores go once the new ones are there.

    Raises UserError as `check_place` does.
    """
    check_place(out, overwrite)
    fs, inner = filesystem(out)
    if is_local(fs):
        with growing_folder(inner, SCORES, overwrite) as folder:
            yield Store(str(folder))
    else:
        with leased(Store(out), out, "name another folder"):
            yield Store(out)


def begin(store: Store, question: Question) -> dict[int, ScorePart]:
    """Write down what is asked, or go on with it: the committed parts, by number; damaged ones are not among them.

    Raises UserError where the folder holds the answer to another question.
    """
    text = store.read(QUESTION)
    if text is None:
        store.write(QUESTION, question.model_dump_json(indent=1).encode())
        return {}
    asked = parse(Question, text, f"{store.uri}/{QUESTION}")
    if asked != question:
        raise UserError(
            f"{store.uri} holds scores of {_difference(asked, question)}; name a new folder, or replace it with "
            "--overwrite"
        )
    committed = (read_part(store, question, number) for number in range(question.parts))
    return {part.number: part for part in committed if part is not None}


def write_part(store: Store, question: Question, number: int, scores: Scores, tokens: int) -> ScorePart:
    """Write part `number` at once. `scores`: (rows, block_size) float16 of each metric; `tokens`: without padding."""
    length = question.block_size
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(scores[name].reshape(-1)), length) for name in scores]
    labels = {"question": question.digest, "part": str(number), "tokens": str(tokens)}
    schema = pa.schema([(name, pa.list_(pa.float16(), length)) for name in scores], metadata=labels)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    content = sink.getvalue().to_pybytes()
    store.write(_file(number), content)
    return _part(number, tokens, len(columns[0]), content)


def read_part(store: Store, question: Question, number: int) -> ScorePart | None:
    """Part `number` of the folder, None where it isn't there, not whole, or the answer to another question."""
    content = store.read(_file(number))
    if content is None:
        return None
    try:
        reader = pa.ipc.open_file(pa.py_buffer(content))
        labels = reader.schema.metadata or {}
        rows = reader.read_all().num_rows
        tokens = int(labels[b"tokens"])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    belongs = labels.get(b"question") == question.digest.encode() and labels.get(b"part") == str(number).encode()
    if not belongs or rows != len(question.rows_of(number)):
        return None
    return _part(number, tokens, rows, content)


def finish(store: Store, question: Question, parts: Iterable[ScorePart]) -> ScoresManifest:
    """Write the manifest over all `parts`, in any order: from now on the folder opens."""
    ordered = sorted(parts, key=lambda part: part.number)
    if [part.number for part in ordered] != list(range(question.parts)):
        raise ValueError(f"{len(ordered)} parts of {question.parts}")
    manifest = ScoresManifest(question=question, parts=ordered)
    store.write(MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def _file(number: int) -> str:
    return f"parts/{number:06d}.arrow"


def _part(number: int, tokens: int, rows: int, content: bytes) -> ScorePart:
    digest = hashlib.sha256(content).hexdigest()
    return ScorePart(
        number=number,
        tokens=tokens,
        entry=ShardEntry(file=_file(number), rows=rows, bytes=len(content), sha256=digest),
    )


def _difference(there: Question, wanted: Question) -> str:
    if there.vocabulary_sha256 != wanted.vocabulary_sha256:
        return "another vocabulary"
    if (there.blocks, there.split, there.rows) != (wanted.blocks, wanted.split, wanted.rows):
        return "other blocks"
    if there.model != wanted.model:
        return "another model"
    return "the same blocks and model with other metrics or settings"
