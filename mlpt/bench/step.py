"""Training-step speed against Hugging Face `Trainer` + `DataCollatorForLanguageModeling`, and what corruption costs.

Same model (BERT 4 x 256, vocabulary 8,192), data, batch (32 x 128 tokens), optimiser and clipping on both sides.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Mapping

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from mlpt.bench.harness import Row, machine, peak_bytes, wait_for_device
from mlpt.data.vocabulary import Vocabulary
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import Encoder, build_encoder
from mlpt.objectives import OBJECTIVES, make_objectives
from mlpt.objectives.base import Objective
from mlpt.randomness import torch_generator

VOCABULARY = 8192
LAYERS, HIDDEN = 4, 256
BATCH, LENGTH = 32, 128
STEPS = 4  # of one timing; the step before them is not counted
ROUNDS = 5
LEARNING_RATE, MAX_NORM = 5e-5, 1.0
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}


def run() -> list[Row]:
    """Tokens per second in float32 and bf16 against `Trainer` in float32; corruption as a share of a step."""
    tokens = _tokens(BATCH * (STEPS + 1))
    objectives = make_objectives({name: {} for name in OBJECTIVES}, _vocabulary())
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    float32 = OurTraining(_encoder(objectives).to(device), tokens, bf16=False)
    bf16 = OurTraining(_encoder(objectives).to(device), tokens, bf16=True)
    with tempfile.TemporaryDirectory() as folder:
        peer = TrainerTraining(_encoder(objectives).backbone, tokens, folder)
        trainings: tuple[OurTraining | TrainerTraining, ...] = (float32, bf16, peer)
        rounds = [[training.seconds() for training in trainings] for _ in range(1 + ROUNDS)]
    one, two, three = (statistics.median(taken) for taken in zip(*rounds[1:], strict=True))  # the first one warms up
    return one, two, three


class OurTraining:
    """The step of mlpt: corrupt, predict at the masked positions only, clip, fused AdamW."""

    def __init__(self, encoder: Encoder, tokens: Tensor, bf16: bool):
        self.encoder = encoder
        self.tokens = tokens
        self.device = next(encoder.parameters()).device
        self.autocast = torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
        self.optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def seconds(self) -> float:
        """Mean seconds of a step over STEPS steps."""
        order = iter(torch.randperm(len(self.tokens), generator=torch_generator(0, "order")).split(BATCH))
        self.step(next(order), 0)
        wait_for_device()
        start = time.perf_counter()
        for step, rows in enumerate(order, start=1):
            self.step(rows, step)
        wait_for_device()
        return (time.perf_counter() - start) / STEPS

    def step(self, rows: Tensor, step: int) -> None:
        inputs = self.encoder.objectives["mlm"].corrupt(self.tokens[rows], torch_generator(0, "corrupt", step))
        with self.autocast:
            loss = self.encoder("mlm", inputs.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class TrainerTraining:
    """The same steps by the stock `Trainer` with its defaults."""

    def __init__(self, model: nn.Module, tokens: Tensor, folder: str):
        self.clock = StepClock()
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS + 1,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_NORM,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        self.trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=DataCollatorForLanguageModeling(_tokenizer(), mlm_probability=0.15),
            train_dataset=[{"input_ids": row} for row in tokens],
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)  # it writes to the standard output, where our rows go

    def seconds(self) -> float:
        """Mean seconds of a step over STEPS steps."""
        self.trainer.optimizer = self.trainer.lr_scheduler = None
        self.trainer.train()
        return (self.clock.times[-1] - self.clock.times[0]) / STEPS


class StepClock(TrainerCallback):
    """Notes when each step of `Trainer` ended."""

    def on_train_begin(self, args, state, control, **_):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **_):
        wait_for_device()
        self.times.append(time.perf_counter())


def _seconds_to_corrupt(objective: Objective, tokens: Tensor, repeats: int = 50) -> float:
    times = []
    for step in range(repeats):
        start = time.perf_counter()
        objective.corrupt(tokens, torch_generator(0, "corrupt", step))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _encoder(objectives: Mapping[str, Objective]) -> Encoder:
    config = ModelConfig(architecture="bert", hidden_size=HIDDEN, layers=LAYERS, heads=4)
    return build_encoder(config, _vocabulary(), objectives, LENGTH, seed=0)


def _tokens(rows: int) -> Tensor:
    """(rows, LENGTH) int64: packed blocks of random words."""
    tokens = torch.randint(len(SPECIAL), VOCABULARY, (rows, LENGTH), generator=torch_generator(0, "tokens"))
    tokens[:, 0], tokens[:, -1] = SPECIAL["[CLS]"], SPECIAL["[SEP]"]
    return tokens


def _vocabulary() -> Vocabulary:
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
