"""MetaLMO's two training steps (Shen, 2021) for many small students and their teachers at once, as `many` has it for
students alone.

The same mathematics as the rules `teacher_hard` and `teacher_soft`, with nothing shared with the run's machinery: for
networks of a few thousand weights, whose steps cost more in starting kernels than in computing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vjp, vmap

from mlpt.meta.engines.adam import adam_step
from mlpt.models.pairs import pair_loss
from mlpt.models.soft import token_cross_entropy
from mlpt.models.teacher import Pair, Student, Teacher
from mlpt.training.many import Mode, Recorded


@dataclass(frozen=True)
class Taught:
    """How students and teachers of one group learn. Published: `inner_lr` 0.1, `max_norm` 5, `meta_weight` 1 (hard) or
    100 (soft), `support_steps` 1, `inner_steps` 1, no `entropy`, no `baseline`.

    rule       "hard": REINFORCE with the cosine of first-order MAML. "soft": the second-order gradient.
    writes     "pairs": inputs and targets; "inputs": the target is the text.
    entropy    bonus for the entropy of what is written, in nats a token.
    baseline   of the hard rule: decay of a moving average of h that is subtracted from it.
    inner_steps  of the soft rule: pseudo steps on the same texts before the support rows.
    """

    rule: Literal["hard", "soft"]
    writes: Literal["pairs", "inputs"] = "pairs"
    inner_lr: float = 0.1
    support_steps: int = 1
    inner_steps: int = 1
    meta_weight: float = 1.0
    auxiliary: float = 1.0
    entropy: float = 0.0
    baseline: float | None = None
    max_norm: float = 5.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01


class Labelled(NamedTuple):
    """Rows with labels at some positions: (models, rows, length) tokens, (models, rows, n) positions and their labels,
    int64. Padding is 0 everywhere; a label of 0 does not count."""

    tokens: Tensor
    at: Tensor
    labels: Tensor


class Step(NamedTuple):
    """What one step of all models works on.

    text, masked, labels  (models, rows, length) int64: texts, the same corrupted, and the original tokens where
                          they are to be predicted (0 elsewhere), for the auxiliary loss.
    noise                 (models, 2, rows, length) float32 in [0, 1): of hard samples.
    support, query        labelled rows.
    """

    text: Tensor
    masked: Tensor
    labels: Tensor
    noise: Tensor
    support: Labelled
    query: Labelled


FIGURES = ("student_loss", "support_loss", "query_loss", "auxiliary", "h", "entropy", "mask_share", "copied")


class ManyTaught:
    """Students, teachers, and the AdamW of both (all weights decay; the rate of a step is for both).

    `students` and `teachers` are (models, parameters) weights; `student_moments` and `teacher_moments` two tensors each
    of those shapes; `mean` (models,) the hard rule's baseline. These and `steps` are all that changes.

    Padding is token 0. Networks are in the mode (training or not) in which they are given.
    """

    def __init__(
        self, students: Sequence[Student], teachers: Sequence[Teacher], how: Taught, mask: int, mode: Mode = "recorded"
    ):
        self.students, self.teachers = stacked(students), stacked(teachers)
        self.student_moments = (torch.zeros_like(self.students), torch.zeros_like(self.students))
        self.teacher_moments = (torch.zeros_like(self.teachers), torch.zeros_like(self.teachers))
        self.mean = torch.zeros(len(students))
        self.steps = 0
        one = Teaching(students[0], teachers[0], how, mask)
        step = one.soft if how.rule == "soft" else one.hard
        # Each model draws dropout of its own; steps and rate are everyone's.
        axes = (*[0] * 7, None, None, *[0] * 10)
        self._run = Recorded(vmap(step, in_dims=axes, randomness="different"), mode)

    def step(self, batch: Step, rate: float, seed: int) -> Tensor:
        """One step of all; (models, len(FIGURES)) what it found. `seed` is of its dropout."""
        self.steps += 1
        state = (self.students, *self.student_moments, self.teachers, *self.teacher_moments, self.mean)
        count = torch.tensor([float(self.steps), rate])
        flat = (*batch[:4], *batch.support, *batch.query)
        found = self._run(*state, count[0], count[1], *flat, seed=seed)
        self.students, self.student_moments = found[0], (found[1], found[2])
        self.teachers, self.teacher_moments, self.mean = found[3], (found[4], found[5]), found[6]
        return found[7]


class Teaching:
    """The step of one student and its teacher, as a pure function of flat weights."""

    def __init__(self, student: Student, teacher: Teacher | None, how: Taught, mask: int):
        self.how, self._mask = how, mask
        self.student = _Flat(student)
        self._teacher = None if teacher is None else _Flat(teacher)

    def soft(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = _Given(*values[:9])
        text, masked, labels, _ = values[9:13]
        support, query = Labelled(*values[13:16]), Labelled(*values[16:])
        real = text != 0
        how, group = self.how, self.group(given.rate)

        def judged(logits: Pair) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
            written, rest = _split(logits)
            x = written.inputs.softmax(-1)
            y = text if how.writes == "inputs" else written.targets.softmax(-1)

            def pseudo(weights: Tensor) -> Tensor:
                return token_cross_entropy(self.student(weights, x, real), y, real)

            first, told = grad_and_value(pseudo)(given.weights)
            looked, moments = adam_step(given.weights, first, given.moments, given.steps, group)
            for further in range(1, how.inner_steps):
                looked, moments = adam_step(looked, grad(pseudo)(looked), moments, given.steps + further, group)
            support_loss = told
            for _ in range(how.support_steps):
                gradient, support_loss = grad_and_value(self._labelled)(looked, support)
                looked = looked - how.inner_lr * gradient
            query_loss = self._labelled(looked, query)
            auxiliary = _auxiliary(rest, text, masked, labels, real)
            total = how.meta_weight * query_loss + how.auxiliary * auxiliary
            if how.entropy:
                total = total - how.entropy * self._entropy(written)
            return total, (first, told, support_loss, query_loss, auxiliary)

        logits, back, *_ = vjp(lambda words: self._write(words, text, masked), given.words)
        slopes, (first, *losses) = grad(judged, has_aux=True)(logits)
        (gradient,) = back(slopes)
        student = adam_step(given.weights, self._clipped(first), given.moments, given.steps, group)
        teacher = adam_step(given.words, self._clipped(gradient), given.word_moments, given.steps, group)
        figures = self._figures([*losses, torch.zeros_like(losses[0])], _split(logits)[0], text)
        return student[0], *student[1], teacher[0], *teacher[1], given.mean, figures

    def hard(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = _Given(*values[:9])
        text, masked, labels, noise = values[9:13]
        support, query = Labelled(*values[13:16]), Labelled(*values[16:])
        real = text != 0
        how, group = self.how, self.group(given.rate)
        logits, back, *_ = vjp(lambda words: self._write(words, text, masked), given.words)
        written = _split(logits)[0]
        drawn = [torch.where(real, draw(one, noise[n]), 0) for n, one in enumerate(written)]
        pair = Pair(drawn[0], text if how.writes == "inputs" else drawn[1])
        there = pair.inputs != 0
        weights, moments, h, losses = self.agreement(
            given.weights,
            given.moments,
            given.steps,
            given.rate,
            lambda weights: token_cross_entropy(self.student(weights, pair.inputs, there), pair.targets, there),
            support,
            query,
        )
        reward, mean = self.reward(h, given.mean, given.steps)

        def total(logits: Pair) -> tuple[Tensor, Tensor]:
            written, rest = _split(logits)
            if how.writes == "inputs":
                sampled = token_cross_entropy(written.inputs, pair.inputs, real)
            else:
                sampled = pair_loss(written, pair, Pair(real, real))
            auxiliary = _auxiliary(rest, text, masked, labels, real)
            loss = reward * sampled + how.auxiliary * auxiliary
            if how.entropy:
                loss = loss - how.entropy * self._entropy(written)
            return loss, auxiliary

        slopes, auxiliary = grad(total, has_aux=True)(logits)
        (gradient,) = back(slopes)
        teacher = adam_step(given.words, self._clipped(gradient), given.word_moments, given.steps, group)
        figures = self._figures([*losses, auxiliary, h], written, text)
        return weights, *moments, teacher[0], *teacher[1], mean, figures

    def agreement(
        self,
        weights: Tensor,
        moments: tuple[Tensor, ...],
        steps: Tensor,
        rate: Tensor,
        loss: Callable[[Tensor], Tensor],
        support: Labelled,
        query: Labelled,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor, list[Tensor]]:
        """The student after its step, its moments, the cosine h, and the losses of step, support and query."""
        first, told = grad_and_value(loss)(weights)
        stepped, moments = adam_step(weights, self._clipped(first), moments, steps, self.group(rate))
        looked, support_loss = stepped, told
        for _ in range(self.how.support_steps):
            gradient, support_loss = grad_and_value(self._labelled)(looked, support)
            looked = looked - self.how.inner_lr * self._clipped(gradient)
        after, query_loss = grad_and_value(self._labelled)(looked, query)
        after, moved = self._clipped(after), weights - stepped
        h = (moved * after).sum() / (moved.norm() * after.norm())
        return stepped, moments, h, [told, support_loss, query_loss]

    def reward(self, h: Tensor, mean: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """What weights the sample's likelihood (0 where h is no number or beyond 1), and the baseline after it."""
        fine = (h >= -1) & (h <= 1)
        reward = torch.where(fine, self.how.meta_weight * (h - mean), 0.0)
        if self.how.baseline is not None:
            before = torch.where(steps > 1, mean, h)
            mean = torch.where(fine, self.how.baseline * before + (1 - self.how.baseline) * h, mean)
        return reward, mean

    def _write(self, words: Tensor, text: Tensor, masked: Tensor) -> Pair:
        """The teacher's logits of the text, of the text as the auxiliary loss reads it, and of the masked text."""
        assert self._teacher is not None
        read = torch.cat([masked[:, :1], text[:, 1:]], dim=1)
        real = text != 0
        return Pair(*self._teacher(words, torch.cat([text, read, masked]), torch.cat([real, real, real])))

    def _labelled(self, weights: Tensor, rows: Labelled) -> Tensor:
        logits = self.student(weights, rows.tokens, rows.tokens != 0, at=rows.at)
        return token_cross_entropy(logits, rows.labels, rows.labels != 0)

    def _entropy(self, written: Pair) -> Tensor:
        sides = written[:1] if self.how.writes == "inputs" else written
        return torch.stack([_entropy(one) for one in sides]).mean()

    def _clipped(self, gradient: Tensor) -> Tensor:
        return gradient * (self.how.max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)

    def group(self, rate: Tensor) -> dict[str, Any]:
        how = self.how
        fixed = {"decoupled_weight_decay": True, "amsgrad": False, "maximize": False}
        return {"lr": rate, "betas": how.betas, "eps": how.eps, "weight_decay": how.weight_decay} | fixed

    def _figures(self, losses: Sequence[Tensor], written: Pair, text: Tensor) -> Tensor:
        logits = written.inputs[:1]  # of the first row alone: they are only looked at
        shares = logits.softmax(-1)
        copied = shares.gather(-1, text[:1].unsqueeze(-1)).mean()
        return torch.stack([*losses, _entropy(logits), shares[..., self._mask].mean(), copied]).detach()


class _Given(NamedTuple):
    """One model's state before a step, the number of the step, and its rate."""

    weights: Tensor
    first: Tensor
    second: Tensor
    words: Tensor
    word_first: Tensor
    word_second: Tensor
    mean: Tensor
    steps: Tensor
    rate: Tensor

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        return self.first, self.second

    @property
    def word_moments(self) -> tuple[Tensor, Tensor]:
        return self.word_first, self.word_second


class _Flat:
    """A module called at flat weights."""

    def __init__(self, module: nn.Module):
        self._module = module
        named = dict(module.named_parameters())
        self._names, self._shapes = list(named), [one.shape for one in named.values()]
        self._sizes = [one.numel() for one in named.values()]

    def __call__(self, weights: Tensor, *args: Any, **kwargs: Any) -> Any:
        parts = zip(self._names, weights.split(self._sizes), self._shapes, strict=True)
        return functional_call(self._module, {name: part.view(shape) for name, part, shape in parts}, args, kwargs)


def stacked(models: Sequence[nn.Module]) -> Tensor:
    return torch.stack([torch.cat([one.detach().flatten() for one in model.parameters()]) for model in models])


def _split(logits: Pair) -> tuple[Pair, Pair]:
    """Of the text itself, and of what the auxiliary loss is of."""
    rows = len(logits.inputs) // 3
    return Pair(*(one[:rows] for one in logits)), Pair(*(one[rows:] for one in logits))


def _auxiliary(logits: Pair, text: Tensor, masked: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    """`mlpt.models.pairs.auxiliary_loss` of logits that are there already."""
    read = torch.cat([masked[:, :1], text[:, 1:]], dim=1)
    of_text, of_masked = (Pair(*halves) for halves in zip(*(one.chunk(2) for one in logits), strict=True))
    from_text = pair_loss(of_text, Pair(masked, read), Pair(real, real))
    return from_text + pair_loss(of_masked, Pair(masked, labels), Pair(real, labels != 0))


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """`mlpt.models.pairs.draw_tokens` from given noise, by operations that `vmap` knows."""
    cumulative = logits.detach().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[..., -1:]
    point = torch.minimum(uniform.unsqueeze(-1) * total, total * (1 - 2**-23))
    return (cumulative <= point).sum(-1)


def _entropy(logits: Tensor) -> Tensor:
    """Mean entropy in nats; tokens without mass (-inf) count nothing."""
    logs = logits.log_softmax(-1)
    finite = torch.where(logs == -torch.inf, 0.0, logs)
    return -(logs.exp() * finite).sum(-1).mean()
