"""Fixtures that several rooms share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from flaky_storage import Flaky

# Tests are many small processes on few cores: threads would only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray lets its workers wait for all else on a busy machine


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What a run does to the log of mlpt ends with its test."""
    logger = logging.getLogger("mlpt")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What torch draws in a test doesn't depend on the tests before it: a tolerance is of these very numbers."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data for development; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MLPT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the development data, and {folder} is not a folder (set MLPT_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def small_blocks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prepared blocks of 32 tokens from the documentation corpus, vocabulary 512, for tests that train something."""
    from mlpt.data.prepare import DataConfig, prepare

    folder = tmp_path_factory.mktemp("blocks") / "docs"
    config = DataConfig(source="docs", max_bytes=600_000, vocab_size=512, block_size=32, dev_share=0.1, workers=1)
    prepare(config, str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A BERT of 2 layers x 32 with its tokenizer: letters and the commonest words of the documentation."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    from mlpt.tasks import TaskSource, load_task

    folder = tmp_path_factory.mktemp("tiny") / "model"
    counts: dict[str, int] = {}
    for row in load_task("docs_package", TaskSource()).splits["train"]:
        for word in row.first.lower().split():
            if word.isalpha():
                counts[word] = counts.get(word, 0) + 1
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = sorted(set(counts) - set(letters), key=lambda word: (-counts[word], word))[:300]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
        *words,
    ]
    tokenizer = BertTokenizerFast({word: number for number, word in enumerate(vocabulary)}, do_lower_case=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
        )
        BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch):
    """The storage behind `flaky://`, empty and healthy; tries follow each other quickly."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("mlpt.storage.store._FIRST_DELAY_S", 0.001)
    Flaky.reset()
    yield Flaky
    Flaky.reset()
