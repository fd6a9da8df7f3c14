"""`prepare` against the least that tokenising the same text could take: a bare loop of `tokenizers.encode_batch`."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.data.corpora import find_files, plan
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.readers import read_segment

TEXT_BYTES = 8 << 20  # of the embedded corpus: seconds of tokenising, so that starting processes is a small part
BATCH = 1000  # documents a call of the peer's loop
ROUNDS = 3


def run() -> list[Row]:
    """Tokens a second of `prepare` (read, tokenise, pack, write, hash) and of the peer, on all cores of this machine.

    The peer's documents are in memory already, and its ids are thrown away; `tokenizers` spreads each of its batches
    over the cores. Both use the tokenizer that a first, unmeasured `prepare` trained.
    """
    with tempfile.TemporaryDirectory() as folder:
        first = DataConfig(source="docs", max_bytes=TEXT_BYTES)
        trained = prepare(first, f"{folder}/first")
        config = first.model_copy(update={"tokenizer": f"{folder}/first/tokenizer"})
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
    tokens = sum(split.tokens for split in trained.splits.values())
    rates = [tokens / one for one in seconds]
    return [
        Row(
            case="data",
            name="prepare against a loop of tokenizers.encode_batch",
            ours=rates[0],
            peer=rates[1],
            ratio=rates[0] / rates[1],
            unit="tokens/s",
            peak_bytes=peak_bytes(),
            machine=machine(),
        )
    ]


def _texts(config: DataConfig) -> Iterator[str]:
    for piece in plan(find_files(config.sources, config.max_bytes), config.max_bytes):
        for segment in piece.segments:
            yield from (document.text for document in read_segment(segment))
