"""Training-step speed against Hugging Face `Trainer` + `DataCollatorForLanguageModeling`, and what corruption costs.

Same model (BERT 4 x 256, vocabulary 8,192), data, batch (32 x 128 tokens), optimiser and clipping on both sides.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
)

from mlpt.arms import arms_of
from mlpt.bench.harness import Row, machine, peak_bytes, wait_for_device
from mlpt.bench.stock_trainer import StockTrainer
from mlpt.data.batch import Batch
from mlpt.data.sources import Sources
from mlpt.data.vocabulary import Vocabulary
from mlpt.meta.learner import MetaConfig
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import Encoder, build_encoder
from mlpt.objectives import OBJECTIVES, make_objectives
from mlpt.objectives.base import Objective
from mlpt.randomness import torch_generator
from mlpt.settings import load_settings
from mlpt.storage.checkpoint import Checkpoints
from mlpt.training.arm_rows import ArmRows
from mlpt.training.config import TrainConfig
from mlpt.training.group import Group, default_device
from mlpt.training.loop import Loop
from mlpt.training.optimizer import OptimizerConfig
from mlpt.training.outer import Outer
from mlpt.training.pretraining import Pretraining
from mlpt.training.schedule import ScheduleConfig
from mlpt.training.tracker import Tracker

VOCABULARY = 8192
LAYERS, HIDDEN = 4, 256
BATCH, LENGTH = 32, 128
STEPS = 4  # of one timing; the step before them is not counted
ROUNDS = 5
LEARNING_RATE, MAX_NORM = 5e-5, 1.0
CORRUPTING = [name for name in OBJECTIVES if name != "teacher_made"]  # a network writes its inputs: `bench teacher`
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}


def run() -> list[Row]:
    """Tokens per second in float32 and bf16 against `Trainer` in float32; corruption as a share of a step."""
    tokens = make_tokens(BATCH * (STEPS + 1))
    objectives = make_objectives({name: {} for name in CORRUPTING}, vocabulary())
    for objective in objectives.values():
        objective.prepare_data(InMemory(tokens))
    ours_float32, ours_bf16, theirs = _seconds_per_step(tokens, objectives)
    rows = [
        _speed_row("float32, against Trainer", ours_float32, theirs),
        _speed_row("bf16 autocast, against Trainer's default", ours_bf16, theirs),
    ]
    for name, objective in objectives.items():
        seconds = _seconds_to_corrupt(objective, tokens[:BATCH])
        rows.append(_corruption_row(f"corruption by {name}, share of a float32 step", seconds / ours_float32))
    return rows


def _seconds_per_step(tokens: Tensor, objectives: Mapping[str, Objective]) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        float32 = OurTraining(make_encoder(objectives), tokens, "float32", folder)
        bf16 = OurTraining(make_encoder(objectives), tokens, "bf16", folder)
        peer = stock_training(make_encoder(objectives).backbone, tokens, folder)
        trainings: tuple[OurTraining | StockTrainer, ...] = (float32, bf16, peer)
        rounds = [[training.seconds() for training in trainings] for _ in range(1 + ROUNDS)]
    one, two, three = (statistics.median(taken) for taken in zip(*rounds[1:], strict=True))  # the first one warms up
    return one, two, three


class OurTraining:
    """The step of mlpt's own loop, with nothing left out."""

    def __init__(
        self,
        encoder: Encoder,
        tokens: Tensor,
        precision: Literal["float32", "bf16"],
        folder: str,
        group: Group | None = None,
        micro_batches: int = 1,
        **more: Any,
    ):
        """more: further settings of training."""
        config = TrainConfig(
            **more,
            batch_size=BATCH,
            micro_batch_size=BATCH // micro_batches,
            precision=precision,
            optimizer=OptimizerConfig(lr=LEARNING_RATE, weight_decay=0.0),
            schedule=ScheduleConfig(shape="constant", warmup=0),
            clip=MAX_NORM,
        )
        blocks: Any = InMemory(tokens)
        group = group or Group(device=default_device())
        arms = arms_of(["mlm"], [], None, texts=False)
        meta = load_settings(MetaConfig, {"rules": {"mixture": "uniform"}})
        sources = Sources(blocks, blocks, blocks)
        rows = ArmRows(config, encoder, sources, arms.every, arms.trained, arms.selecting(), group, seed=0)
        outer, checkpoints = Outer(meta, arms.trained, None, group), Checkpoints(Path(folder) / "checkpoints")
        self.loop = Loop(Pretraining(config, rows, outer, group, checkpoints, Tracker(Path(folder), group)))

    def seconds(self) -> float:
        """Mean seconds of a step over STEPS steps."""
        self.loop.train_step()
        wait_for_device()
        start = time.perf_counter()
        for _ in range(STEPS):
            self.loop.train_step()
        wait_for_device()
        return (time.perf_counter() - start) / STEPS


def plain_training(group: Group, micro_batches: int, folder: str) -> OurTraining:
    """Steps of masked language modelling alone, in float32, as one of `group`."""
    encoder = make_encoder(make_objectives({"mlm": {}}, vocabulary()))
    return OurTraining(encoder, make_tokens(BATCH * (STEPS + 1)), "float32", folder, group, micro_batches)


class InMemory:
    """Blocks that need no files."""

    def __init__(self, tokens: Tensor):
        self._tokens = tokens
        self.block_size = tokens.shape[1]
        self.domains: list[str] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def batch(self, rows: np.ndarray) -> Batch:
        return Batch(self._tokens[torch.from_numpy(rows)], rows)

    def token_counts(self) -> np.ndarray:
        return np.bincount(self._tokens.reshape(-1).numpy(), minlength=VOCABULARY)


def stock_training(model: nn.Module, tokens: Tensor, folder: str) -> StockTrainer:
    """The same steps by the stock `Trainer`."""
    return StockTrainer(
        folder,
        STEPS,
        BATCH,
        LEARNING_RATE,
        model=model,
        data_collator=DataCollatorForLanguageModeling(_tokenizer(), mlm_probability=0.15),
        train_dataset=[{"input_ids": row} for row in tokens],
    )


def _seconds_to_corrupt(objective: Objective, tokens: Tensor, repeats: int = 50) -> float:
    times = []
    for step in range(repeats):
        start = time.perf_counter()
        objective.corrupt(Batch.of(tokens), torch_generator(0, "corrupt", step))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_encoder(objectives: Mapping[str, Objective]) -> Encoder:
    config = ModelConfig(architecture="bert", hidden_size=HIDDEN, layers=LAYERS, heads=4)
    return build_encoder(config, vocabulary(), objectives, LENGTH, seed=0)


def make_tokens(rows: int) -> Tensor:
    """(rows, LENGTH) int64: packed blocks of random words."""
    tokens = torch.randint(len(SPECIAL), VOCABULARY, (rows, LENGTH), generator=torch_generator(0, "tokens"))
    tokens[:, 0], tokens[:, -1] = SPECIAL["[CLS]"], SPECIAL["[SEP]"]
    return tokens


def vocabulary() -> Vocabulary:
    return Vocabulary.of(_tokenizer())


def _tokenizer() -> PreTrainedTokenizerFast:
    words = SPECIAL | {f"word{index}": index for index in range(len(SPECIAL), VOCABULARY)}
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "[UNK]")), **names)


def _speed_row(name: str, ours: float, theirs: float) -> Row:
    tokens = BATCH * LENGTH
    return Row("step", name, tokens / ours, tokens / theirs, theirs / ours, "tokens/s", peak_bytes(), machine())


def _corruption_row(name: str, share: float) -> Row:
    return Row("step", name, share, None, None, "share", peak_bytes(), machine())
