"""Single-task fine-tuning speed on SST-2 against Hugging Face `Trainer`: padded to 128 tokens, as its GLUE example does
by default, and padded to the longest of each batch.

Same model (BERT 4 x 256), rows, examples a step, precision (float32), optimiser and clipping on all sides. Without
SST-2's files (folder in MLPT_SHARED_DATA) the texts are the documentation's, and the rows say so.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DataCollatorWithPadding,
    default_data_collator,
)

from mlpt.bench.harness import Row, machine, peak_bytes, wait_for_device
from mlpt.bench.stock_trainer import StockTrainer
from mlpt.data.tokenizers import train_tokenizer
from mlpt.downstream.cell_run import CellRun
from mlpt.downstream.config import FinetuneCell, FinetuneConfig
from mlpt.downstream.finetune import prepare
from mlpt.downstream.loading import load_tokenizer
from mlpt.models.quiet import quiet
from mlpt.models.saved_tokenizer import save_tokenizer
from mlpt.tasks import Example, TaskSource, load_task
from mlpt.training.group import Group, default_device

LAYERS, HIDDEN, VOCABULARY = 4, 256, 8192
BATCH, LENGTH = 32, 128
ROWS = 8192  # of the training set, the first ones
STEPS = 8  # of one timing; the step before them is not counted
ROUNDS = 5
LEARNING_RATE = 5e-5


def run() -> list[Row]:
    """Examples per second against both ways that `Trainer` pads."""
    task, source = sst2_or_docs()
    with tempfile.TemporaryDirectory() as scratch, quiet():
        folder = Path(scratch) / "model"
        examples = load_task(task, source, ("train",)).splits["train"][:ROWS]
        save_model(folder, examples)
        ours = OurFinetuning(folder, task, source, scratch)
        peers = [stock_finetuning(folder, examples, scratch, fixed) for fixed in (True, False)]
        sides: tuple[OurFinetuning | StockTrainer, ...] = (ours, *peers)
        rounds = [[side.seconds() for side in sides] for _ in range(1 + ROUNDS)]
    mine, fixed, dynamic = (statistics.median(taken) for taken in zip(*rounds[1:], strict=True))  # the first warms up
    return [
        _row(f"{task}, against Trainer padded to {LENGTH}", mine, fixed),
        _row(f"{task}, against Trainer's dynamic padding", mine, dynamic),
    ]


class OurFinetuning:
    """Steps of a fine-tuning cell, one after another through its epochs."""

    def __init__(self, folder: Path, task: str, source: TaskSource, scratch: str) -> None:
        config = FinetuneConfig(
            model=str(folder),
            tasks=(task,),
            source=source,
            out=f"{scratch}/ours",
            batch_size=BATCH,
            max_length=LENGTH,
            epochs=1000,
            precision="float32",
            predict_test=False,
        )
        prepared = prepare(config, task)
        train = prepared.features["train"]
        prepared.features["train"] = train.take(np.arange(min(ROWS, len(train))))
        self.cell = CellRun(
            FinetuneCell(config, task, LEARNING_RATE, 0), prepared, Group(device=default_device()), lambda _: None
        )

    def seconds(self) -> float:
        """Mean seconds of a step over STEPS steps."""
        self.cell.loop.train_step()
        wait_for_device()
        start = time.perf_counter()
        for _ in range(STEPS):
            self.cell.loop.train_step()
        wait_for_device()
        return (time.perf_counter() - start) / STEPS


def stock_finetuning(folder: Path, examples: list[Example], scratch: str, fixed: bool) -> StockTrainer:
    """The same by the stock `Trainer`, tokenised ahead like ours."""
    tokenizer = load_tokenizer(str(folder))
    return StockTrainer(
        f"{scratch}/trainer-{fixed}",
        STEPS,
        BATCH,
        LEARNING_RATE,
        model=AutoModelForSequenceClassification.from_pretrained(folder, num_labels=_labels(examples)),
        data_collator=default_data_collator if fixed else DataCollatorWithPadding(tokenizer),
        train_dataset=list(_tokenised(tokenizer, examples, fixed)),
    )


def sst2_or_docs() -> tuple[str, TaskSource]:
    """SST-2 where its files are, else a task of the documentation corpus."""
    folder = os.environ.get("MLPT_SHARED_DATA")
    return ("sst2", TaskSource(data_dir=folder)) if folder else ("docs_package", TaskSource())


def save_model(folder: Path, examples: list[Example]) -> None:
    """A model with fresh weights, and a tokenizer trained on the examples' texts."""

    def texts() -> Iterator[str]:
        return (example.first for example in examples)

    tokenizer: Any = train_tokenizer("wordpiece", texts, VOCABULARY)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=LENGTH,
    )
    save_tokenizer(tokenizer, folder, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)


def _tokenised(tokenizer: Any, examples: list[Example], fixed: bool) -> Iterator[dict[str, Any]]:
    for example in examples:
        padding = "max_length" if fixed else False
        yield {**tokenizer(example.first, truncation=True, max_length=LENGTH, padding=padding), "label": example.label}


def _labels(examples: list[Example]) -> int:
    return 1 + max(example.class_id for example in examples)


def _row(name: str, ours: float, theirs: float) -> Row:
    return Row("finetune", name, BATCH / ours, BATCH / theirs, theirs / ours, "examples/s", peak_bytes(), machine())
