"""Maskers and their students, many at once: the teacher that only chooses what is masked, by the hard rule.

A masker is a table with a score for each token type (`mlpt.models.masker`). Its draws are made outside the recorded
step of the students: they sort.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from mlpt.meta.engines.adam import adam_step
from mlpt.models.masker import draw_loss, draw_positions
from mlpt.models.soft import token_cross_entropy
from mlpt.models.teacher import Student
from mlpt.training.many import Mode, Recorded
from mlpt.training.many_teachers import FIGURES, Labelled, Taught, Teaching, stacked


class MaskStep(NamedTuple):
    """What one step of all models works on.

    text, random   (models, rows, length) int64: texts, and the token that stands where one is replaced at random.
    among          (models, rows, length) bool: the positions that may be chosen.
    counts         (models, rows) int64: how many of them are.
    fate           (models, rows, length) float32 in [0, 1): below 0.8 the mask, below 0.9 the random token, else kept.
    support, query labelled rows.
    """

    text: Tensor
    random: Tensor
    among: Tensor
    counts: Tensor
    fate: Tensor
    support: Labelled
    query: Labelled


class ManyMaskers:
    """As `ManyTaught`, with tables (models, vocabulary) in place of teachers, which begin at zero: random masking.

    rate  of the tables' AdamW, which does not decay them.
    most  positions that are chosen in a row at most.
    """

    def __init__(
        self,
        students: Sequence[Student],
        vocabulary: int,
        how: Taught,
        mask: int,
        rate: float,
        most: int,
        mode: Mode = "recorded",
    ):
        self.how, self.rate, self._mask, self._most = how, rate, mask, most
        self._one = Teaching(students[0], None, how, mask)
        self.students = stacked(students)
        self.student_moments = (torch.zeros_like(self.students), torch.zeros_like(self.students))
        self.teachers = torch.zeros(len(students), vocabulary)
        self.teacher_moments = (torch.zeros_like(self.teachers), torch.zeros_like(self.teachers))
        self.mean = torch.zeros(len(students))
        self.steps = 0
        axes = (0, 0, 0, None, None, *[0] * 9)
        self._run = Recorded(vmap(self._student_step, in_dims=axes, randomness="different"), mode)

    def step(self, batch: MaskStep, rate: float, seed: int) -> Tensor:
        """One step of all; (models, len(FIGURES)) what it found. `seed` is of dropout and of the draw."""
        self.steps += 1
        models, rows, length = batch.text.shape
        flat = [one.flatten(0, 1) for one in (batch.text, batch.among, batch.counts, batch.fate, batch.random)]
        text, among, counts, fate, random = flat
        scores = self.teachers.gather(1, batch.text.flatten(1)).view(-1, length)
        turns = draw_positions(scores, among, counts, torch.Generator().manual_seed(seed))
        replaced = torch.where(fate < 0.8, self._mask, torch.where(fate < 0.9, random, text))
        inputs = torch.where(turns >= 0, replaced, text)
        at = (turns >= 0).long().topk(self._most, dim=1).indices
        labels = torch.where((turns >= 0).gather(1, at), text.gather(1, at), 0)
        rows_of = [one.view(models, rows, -1) for one in (inputs, at, labels)]
        count = torch.tensor([float(self.steps), rate])
        state = (self.students, *self.student_moments)
        found = self._run(*state, count[0], count[1], *rows_of, *batch.support, *batch.query, seed=seed)
        self.students, self.student_moments = found[0], (found[1], found[2])
        h, losses = found[3], found[4]
        self._learn(batch, turns.view(models, rows, length), h)
        spread = self.teachers.std(1, correction=0)
        zero = torch.zeros_like(h)
        figures = torch.stack([*losses.T, zero, h, spread, zero, zero], dim=1)
        assert figures.shape[1] == len(FIGURES)
        return figures

    def _student_step(self, *values: Tensor) -> tuple[Tensor, ...]:
        weights, first, second, steps, rate = values[:5]
        inputs, at, labels = values[5:8]
        support, query = Labelled(*values[8:11]), Labelled(*values[11:])

        def loss(weights: Tensor) -> Tensor:
            logits = self._one.student(weights, inputs, inputs != 0, at=at)
            return token_cross_entropy(logits, labels, labels != 0)

        moved, moments, h, losses = self._one.agreement(weights, (first, second), steps, rate, loss, support, query)
        return moved, *moments, h, torch.stack(losses)

    def _learn(self, batch: MaskStep, turns: Tensor, h: Tensor) -> None:
        """The tables' step by REINFORCE."""
        reward, self.mean = self._one.reward(h, self.mean, torch.tensor(float(self.steps)))
        tables = self.teachers.clone().requires_grad_()
        scores = tables.gather(1, batch.text.flatten(1)).view(batch.text.shape)
        drawn = zip(scores, batch.among, turns, strict=True)
        losses = torch.stack([draw_loss(*one) for one in drawn])
        (gradient,) = torch.autograd.grad((reward * losses).sum(), tables)
        clipped = gradient * (self.how.max_norm / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        group = self._one.group(torch.tensor(self.rate)) | {"weight_decay": 0.0}
        count = torch.tensor(float(self.steps))
        with torch.no_grad():
            self.teachers, moments = adam_step(self.teachers, clipped, self.teacher_moments, count, group)
        self.teacher_moments = (moments[0], moments[1])
