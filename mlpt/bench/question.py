"""Self-evolution learning: questioning against training, scores on disk, guided against random masking, smoothing.

One encoder (BERT 4 x 256, vocabulary 8,192) on blocks of 128 tokens of the documentation corpus; every pair of figures
is measured in turn.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mlpt.arms import arms_of
from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.data.blocks import Blocks
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.sources import Sources
from mlpt.data.token_scores import TokenScores
from mlpt.meta.snapshot import take_snapshot
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import Encoder, build_encoder
from mlpt.objectives import make_objectives
from mlpt.objectives.fresh import Fresh
from mlpt.questioning.config import QuestionConfig
from mlpt.questioning.question import question
from mlpt.questioning.scoring import score_tokens
from mlpt.randomness import torch_generator
from mlpt.training.arm_rows import ArmRows
from mlpt.training.config import TrainConfig
from mlpt.training.group import Group
from mlpt.training.optimizer import OptimizerConfig, make_optimizer

TEXT_BYTES = 4 << 20
VOCABULARY, LENGTH, BATCH = 8192, 128, 32
LAYERS, HIDDEN = 4, 256
ROUNDS = 7
QUESTIONED = 2 * BATCH  # blocks a call
CORRUPTIONS = 200
INTERVAL = 100  # steps between updates of a run that questions while it trains

TOKEN = {"kind": "token"}


def run() -> list[Row]:
    """All rows of the case."""
    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig(max_bytes=TEXT_BYTES, vocab_size=VOCABULARY, block_size=LENGTH)
        prepare(config, f"{folder}/blocks")
        blocks = Blocks.open(f"{folder}/blocks", "train")
        _encoder(blocks, {}).save(f"{folder}/model", blocks.tokenizer())
        asked = QuestionConfig(model=f"{folder}/model", blocks=f"{folder}/blocks", out=f"{folder}/scores")
        scores = question(asked.model_copy(update={"metrics": ("random",)}))
        return [
            _masking(blocks, scores),
            *_questioning(blocks, asked),
            _size(scores),
            *_smoothing(blocks),
            _online(blocks),
        ]


def _questioning(blocks: Blocks, config: QuestionConfig) -> list[Row]:
    """Tokens a second that are scored, against those that a training step of the same model takes."""
    encoder = _encoder(blocks, {})
    rows = np.arange(QUESTIONED)
    tokens = blocks.tokens(rows)

    def scored(**settings: Any) -> Callable[[], object]:
        chosen = config.model_copy(update=settings)
        return lambda: score_tokens(encoder, tokens, rows, blocks.vocabulary, chosen)

    float32, bf16 = (Training(blocks, {"mlm": {}}, precision) for precision in ("float32", "bf16"))
    kinds = [scored(), scored(precision="bf16"), scored(precision="bf16", metrics=("pseudo_loss",))]
    *seconds, plain, fast = seconds_interleaved(*kinds, float32.step, bf16.step, rounds=ROUNDS)
    pairs = {
        "loss, float32, against a float32 training step (>= 3)": (seconds[0], plain),
        "loss, bf16, against a bf16 training step (>= 3)": (seconds[1], fast),
        "loss, bf16, against a float32 training step": (seconds[1], plain),
        "pseudo_loss, 7 passes, bf16, against a bf16 training step": (seconds[2], fast),
    }
    return [
        Row(
            case="question",
            name=f"questioning by {name}",
            ours=tokens.numel() / ours,
            peer=BATCH * LENGTH / step,
            ratio=tokens.numel() / ours / (BATCH * LENGTH / step),
            unit="tokens/s",
            peak_bytes=peak_bytes(),
            machine=machine(),
        )
        for name, (ours, step) in pairs.items()
    ]


def _size(scores: TokenScores) -> Row:
    size = scores.manifest.bytes / scores.manifest.tokens
    return _row("scores on disk, a token and metric (<= 2.2)", size, 2.2, "bytes")


def _masking(blocks: Blocks, scores: TokenScores) -> Row:
    """The corruption of a batch, 15 % of it chosen: by scores of its rows, mapped from disk, and at random."""
    settings: dict[str, Any] = {"guided": {"guide": "hard", "hard": {"scores": scores.folder}}, "mlm": {}}
    objectives: dict[str, Any] = make_objectives(settings, blocks.vocabulary)
    objectives["guided"].prepare_data(blocks)
    batches = [np.random.default_rng(n).choice(len(blocks), BATCH, replace=False) for n in range(CORRUPTIONS)]
    read = [blocks.batch(rows) for rows in batches]

    def guided() -> None:
        for batch in read:
            objectives["guided"].corrupt(batch, torch_generator(0, "bench"))

    def at_random() -> None:
        for batch in read:
            objectives["mlm"].corrupt(batch, torch_generator(0, "bench"))

    ours, peer = (seconds / CORRUPTIONS for seconds in seconds_interleaved(guided, at_random, rounds=ROUNDS))
    return _row("guided masking of a batch against random masking (within 5 %)", ours, peer, "s")


def _smoothing(blocks: Blocks) -> list[Row]:
    """Training steps: plain, and with targets smoothed towards each reference."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "uniform": {"kind": "uniform"},
        "token, current model": TOKEN,
        "token, frozen model": {**TOKEN, "reference": "frozen"},
    }
    trainings = [Training(blocks, {"mlm": {"smoothing": kind}}) for kind in kinds.values()]
    plain, *others = seconds_interleaved(*(one.step for one in trainings), rounds=ROUNDS)
    return [
        _row(f"smoothing step ({name}): {seconds / plain:.2f} plain steps (<= 1.45)", seconds, plain, "s")
        for name, seconds in zip(list(kinds)[1:], others, strict=True)
    ]


def _online(blocks: Blocks) -> Row:
    """What re-questioning takes from training where the learner has a core of its own: for each interval the rows to
    come, the snapshot, and the guide taken over (not Ray's copies of both)."""
    settings: dict[str, Any] = {"guided": {"guide": "hard", "hard": {}}}
    training = Training(blocks, settings)
    sources = Sources(blocks, blocks, blocks)
    arms = arms_of(["guided"], [], None, texts=False)
    config = TrainConfig(steps=4 * INTERVAL, batch_size=BATCH)
    work = ArmRows(config, training.model, sources, arms.every, arms.trained, {"guided": 1.0}, Group(), seed=0)
    guided: Any = training.model.objectives["guided"]
    rows = work.rows(0, INTERVAL, 2 * INTERVAL, {"guided": 1.0})["all"]
    scores = torch.ones(len(rows), LENGTH, dtype=torch.float16)
    snapshot = take_snapshot(training.model, training.optimizer, 0, 1e-3, moments=False)

    def update() -> None:
        work.rows(0, INTERVAL, 2 * INTERVAL, {"guided": 1.0})
        take_snapshot(training.model, training.optimizer, 0, 1e-3, False, snapshot)
        guided.obey(Fresh(rows, scores, 0.1).part())

    found, step = seconds_interleaved(update, training.step, rounds=ROUNDS)
    name = f"re-questioning every {INTERVAL} steps, without the scoring: {found / (INTERVAL * step):.2%} (<= 3 %)"
    return _row(name, found, INTERVAL * step, "s")


class Training:
    """Steps of one objective with nothing left out: rows, corruption, both passes, clipping, AdamW."""

    def __init__(self, blocks: Blocks, settings: dict[str, Any], precision: str = "float32"):
        self.blocks, self.precision = blocks, precision
        self.model = _encoder(blocks, settings).train()
        (self.name,) = settings
        self.model.objectives[self.name].prepare(self.model)
        self.optimizer = make_optimizer(self.model, OptimizerConfig())
        if precision == "bf16":
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # as the training loop does
        self.taken = 0

    def step(self) -> None:
        rows = (np.arange(BATCH) + self.taken * BATCH) % len(self.blocks)
        objective: Any = self.model.objectives[self.name]
        inputs = objective.corrupt(self.blocks.batch(rows), torch_generator(0, "bench", self.taken))
        self.optimizer.zero_grad(set_to_none=True)
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, self.precision == "bf16"):
            loss = self.model(self.name, inputs.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.taken += 1


def _encoder(blocks: Blocks, settings: dict[str, Any]) -> Encoder:
    objectives = make_objectives(settings, blocks.vocabulary)
    config = ModelConfig(hidden_size=HIDDEN, layers=LAYERS, heads=4)
    encoder = build_encoder(config, blocks.vocabulary, objectives, LENGTH, seed=0)
    return encoder.cuda() if torch.cuda.is_available() else encoder


def _row(name: str, ours: float, peer: float, unit: str) -> Row:
    return Row("question", name, ours, peer, peer / ours, unit, peak_bytes(), machine())
