"""`prepare` against the least that tokenising the same text could take, and against `datasets.map`.

The least is a bare loop of `tokenizers.encode_batch` on texts in memory, whose ids are thrown away.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.data import docs_corpus
from mlpt.data.corpora import find_files, plan
from mlpt.data.manifest import Manifest, read_manifest
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.readers import read_segment

TEXT_BYTES = 8 << 20  # of the embedded corpus: seconds of tokenising, so that starting processes is a small part
FILE_BYTES = 32 << 20  # against `datasets.map`, where starting processes counts
BATCH = 1000  # documents a call of the peer's loop
ROUNDS = 3

_OURS = """
import sys
from mlpt.data.prepare import DataConfig, prepare
prepare(DataConfig(source=sys.argv[1], tokenizer=sys.argv[2], dev_share=0, test_share=0), sys.argv[3])
"""
# The stock way: one map that tokenises, one that joins the ids and cuts them into blocks, columns as few as ours.
_PEER = """
import itertools, os, sys
import datasets
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
columns = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
def ids(batch):
    return tokenizer(batch["text"], **columns, verbose=False)
def blocks(batch):
    joined = list(itertools.chain.from_iterable(batch["input_ids"]))
    return {"input_ids": [joined[at : at + 126] for at in range(0, len(joined) - 125, 126)]}
processes = len(os.sched_getaffinity(0))
text = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[3])
made = text.map(ids, batched=True, num_proc=processes, remove_columns=text.column_names)
made.map(blocks, batched=True, num_proc=processes)
"""


def run() -> Iterator[Row]:
    """Rows of tokens a second of `prepare` (read, tokenise, pack, write, hash), on all cores of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        first = DataConfig(source="docs", max_bytes=TEXT_BYTES)
        trained = prepare(first, f"{folder}/first")
        yield _against_a_loop(first, trained, folder)
        yield from _against_map(folder)


def _against_a_loop(first: DataConfig, trained: Manifest, folder: str) -> Row:
    """Both use the tokenizer that `first`, unmeasured, trained; `tokenizers` spreads each batch over the cores."""
    config = DataConfig(source="docs", max_bytes=TEXT_BYTES, tokenizer=f"{folder}/first/tokenizer")
    texts = list(_texts(config))
    encoder = Tokenizer.from_file(f"{folder}/first/tokenizer/tokenizer.json")
    turn = iter(range(1000))

    def ours() -> None:
        prepare(config, str(Path(folder, f"ours-{next(turn)}")))

    def peer() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        for start in range(0, len(texts), BATCH):
            encoder.encode_batch(texts[start : start + BATCH], add_special_tokens=False)

    seconds = seconds_interleaved(ours, peer, rounds=ROUNDS)
    return _row("prepare against a loop of tokenizers.encode_batch", _tokens(trained), seconds, "tokens/s")


def _against_map(folder: str) -> Iterator[Row]:
    """Each a fresh process, from a file of JSON lines to data on the disk; by the clock and by the CPU's seconds."""
    text, tokenizer = str(docs_corpus.collect(FILE_BYTES)), f"{folder}/first/tokenizer"
    taken: list[list[tuple[float, float]]] = [[], []]
    tokens = 0
    for _ in range(ROUNDS):
        for times, program in zip(taken, (_OURS, _PEER), strict=True):
            times.append(_seconds(program, text, tokenizer, f"{folder}/out"))
            made = read_manifest(f"{folder}/out")
            tokens = _tokens(made) if made is not None else tokens
            shutil.rmtree(f"{folder}/out")
    for which, unit in enumerate(("tokens/s", "tokens/CPU second")):
        seconds = [statistics.median(one[which] for one in times) for times in taken]
        yield _row("prepare against datasets.map, in processes of their own", tokens, seconds, unit)


def _seconds(program: str, *words: str) -> tuple[float, float]:
    """What a program in a new process takes: seconds, and seconds of CPU with all its own processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", program, *words], check=True, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _row(name: str, tokens: int, seconds: list[float], unit: str) -> Row:
    ours, peer = (tokens / one for one in seconds)
    return Row("data", name, ours, peer, ours / peer, unit, peak_bytes(), machine())


def _tokens(manifest: Manifest) -> int:
    return sum(split.tokens for split in manifest.splits.values())


def _texts(config: DataConfig) -> Iterator[str]:
    for piece in plan(find_files(config.places, config.max_bytes), config.max_bytes):
        for segment in piece.segments:
            yield from (document.text for document in read_segment(segment))
