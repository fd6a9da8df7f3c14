"""Finetuning in the two-moons study: all students of a label count at once, whoever wrote their batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlpt.downstream.text_to_text import label_scores
from mlpt.models.soft import token_cross_entropy
from mlpt.models.teacher import Student
from mlpt.randomness import address, numpy_generator
from mlpt.studies.moons.declaration import MoonsStudy
from mlpt.studies.moons.pretraining import ADAMW, MAX_NORM
from mlpt.studies.moons.rows import Rows
from mlpt.training.many import Forward, Many
from mlpt.training.schedule import power_law

WARMUP = 10  # steps, as published
STEPS_AN_EPOCH = 10  # batches of 1, 2, 4, 8, 16, as published for teachers
CLASSES = (2, 5)  # the tokens of the two moons
_AT_ONCE = 1024  # points of the grid that go through all students together


@dataclass(frozen=True)
class Finetuned:
    """Of every student: accuracy on the held-out points at the last epoch, and at the epoch that was best on the dev
    points (the earliest of equals); (students, 4096) the log-odds of moon 1 over the grid at that epoch."""

    last: list[float]
    best: list[float]
    maps: Tensor


def points_loss(forward: Forward, tokens: Tensor, labels: Tensor) -> Tensor:
    """Of labelled points: the label's token at every position."""
    return token_cross_entropy(forward(tokens, tokens != 0), labels, labels != 0)


def finetune(
    study: MoonsStudy, students: Sequence[Student], seeds: Sequence[int], labels: int, rows: Rows
) -> Finetuned:
    """Train each on the labelled points; `seeds` address the order of the points and are shared by all cells."""
    many = Many(students, points_loss, max_norm=MAX_NORM, **ADAMW)  # type: ignore[arg-type]
    train, dev, held_out = (rows.points(labels, split) for split in ("train", "dev", "held_out"))
    size = labels // STEPS_AN_EPOCH
    rates = torch.full((len(students),), study.finetuning_rate)
    best_dev = torch.full((len(students),), -1.0)
    best = many.weights.clone()
    for epoch in range(study.epochs):
        orders = np.stack([numpy_generator(seed, f"moons/order/{labels}", epoch).permutation(labels) for seed in seeds])
        for place in range(STEPS_AN_EPOCH):
            step = epoch * STEPS_AN_EPOCH + place
            picks = torch.from_numpy(orders[:, place * size : (place + 1) * size])
            rate = rates * power_law(step + 1, WARMUP, float("inf"), -0.5)
            many.step((train.tokens[picks], train.targets[picks]), rate, address(0, f"moons/finetune/{labels}", step))
        found = _accuracy(many, dev.tokens, dev.moons)
        better = found > best_dev
        best_dev = torch.where(better, found, best_dev)
        best = torch.where(better.unsqueeze(1), many.weights, best)
    last = _accuracy(many, held_out.tokens, held_out.moons)
    many.weights = best
    chosen = _accuracy(many, held_out.tokens, held_out.moons)
    grid = rows.points(labels, "grid").tokens.split(_AT_ONCE)
    odds = [_scores(many, part) for part in grid]
    maps = torch.cat([one[..., 1] - one[..., 0] for one in odds], dim=1)
    return Finetuned(last.tolist(), chosen.tolist(), maps)


def _scores(many: Many, tokens: Tensor) -> Tensor:
    """(students, points, 2) mean logits of the two moons' tokens."""

    def scores(forward: Forward, tokens: Tensor) -> Tensor:
        return label_scores(forward(tokens, tokens != 0), tokens, CLASSES)

    found: Tensor = many.apply(scores, tokens)
    return found


def _accuracy(many: Many, tokens: Tensor, moons: Tensor) -> Tensor:
    return (_scores(many, tokens).argmax(-1) == moons).double().mean(1)
