"""MetaLMO's two training steps, written from its specification (1.4 to 1.8, 1.10) and from nothing else of the house.

They are plain and slow: what engines and rules are compared with. `student(tokens, real)` gives logits and
`teacher(tokens, real)` two of them; `tokens` are ids or distributions, `real` (batch, length) is true where a position
may be attended to. Padding is id 0. Every function changes what it is given as the published code does, and returns
what it computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import higher
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlpt.meta.engines.adam import DifferentiableAdamW

PAD = 0


@dataclass
class Batch:
    """One micro-batch: plain text (starting with [CLS0]), its masked form and labels (starting with [CLS1]; 0 where
    nothing is predicted), and support and query of one labelled task."""

    text: Tensor
    masked: Tensor
    labels: Tensor
    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]


@dataclass
class Settings:
    """What both steps share. `query_padding`: what the losses of support and query leave out, the padding of the
    `inputs` (published) or of the `labels`."""

    inner_lr: float = 0.1
    max_norm: float = 5.0
    accumulation: int = 1
    meta_weight: float = 1.0
    query_padding: str = "inputs"
    fixed_target: bool = False


@dataclass
class Hard:
    """What the hard step computed."""

    pair_loss: Tensor
    losses: tuple[Tensor, Tensor, Tensor]  # pseudo, support, query
    theta0: list[Tensor]
    theta1: list[Tensor]
    query_gradient: list[Tensor]  # clipped
    teacher_gradient: list[Tensor]  # g_T
    dot: Tensor
    h: Tensor
    applied: bool


@dataclass
class Soft:
    """What the soft step computed."""

    losses: tuple[Tensor, Tensor, Tensor]
    student_gradient: list[Tensor]
    theta1: list[Tensor]
    theta2: list[Tensor]
    auxiliary: Tensor = field(default_factory=lambda: torch.zeros(()))


def get_loss(scores: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of hard or soft targets, averaged over the positions where `mask` is false."""
    if y.is_floating_point():
        y = y.masked_fill(mask.unsqueeze(-1), 0.0)
        return -(y * F.log_softmax(scores, dim=-1)).sum() / y.sum()
    return F.cross_entropy(scores.flatten(0, 1), y.masked_fill(mask, -1).flatten(), ignore_index=-1)


def teacher_loss(heads: tuple[Tensor, Tensor], x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor) -> Tensor:
    return 0.5 * get_loss(heads[0], x, mask_x) + 0.5 * get_loss(heads[1], y, mask_y)


def auxiliary_loss(teacher: Callable, batch: Batch) -> Tensor:
    """1.8: L_x + L_y, both inputs as one batch under the text's padding."""
    text = batch.text.clone()
    text[:, 0] = batch.masked[:, 0]
    padding = text == PAD
    heads = teacher(torch.cat([text, batch.masked]), ~torch.cat([padding, padding]))
    n = len(text)
    of_text, of_masked = [one[:n] for one in heads], [one[n:] for one in heads]
    from_text = teacher_loss(of_text, batch.masked, text, padding, padding)
    return from_text + teacher_loss(of_masked, batch.masked, batch.labels, padding, batch.labels == PAD)


def labelled_loss(student: Callable, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    """The loss of support or query (ML-1 is which padding it leaves out)."""
    return get_loss(student(x, x != PAD), y, (x if settings.query_padding == "inputs" else y) == PAD)


def hard_step(
    student: nn.Module,
    teacher: nn.Module,
    student_optimizer: torch.optim.Optimizer,
    batch: Batch,
    draw: Callable,
    settings: Settings,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Hard:
    """1.6, points 1 to 7; `draw(heads)` gives the sample (x, y) of the teacher's logits. Afterwards the student is one
    AdamW step on, and the teacher's .grad holds its gradient; the teacher's own step is the caller's."""
    weights, words = list(student.parameters()), list(teacher.parameters())
    padding = batch.text == PAD
    heads = teacher(batch.text, ~padding)
    x, y = draw(heads)
    pair_loss = teacher_loss(heads, x, y, padding, padding)
    teacher_gradient = list(torch.autograd.grad(pair_loss / settings.accumulation, words))

    theta0 = _copies(weights)
    pseudo = get_loss(student(x, x != PAD), y, x == PAD)
    _backward(pseudo, student_optimizer, weights, settings.max_norm)
    student_optimizer.step()
    if scheduler is not None:
        scheduler.step()
    theta1 = _copies(weights)
    delta = [before - after for before, after in zip(theta0, theta1, strict=True)]

    support = labelled_loss(student, *batch.support, settings)
    _backward(support, student_optimizer, weights, settings.max_norm)
    with torch.no_grad():
        for weight in weights:
            weight -= settings.inner_lr * weight.grad
    query = labelled_loss(student, *batch.query, settings)
    _backward(query, student_optimizer, weights, settings.max_norm)
    query_gradient = [weight.grad.clone() for weight in weights]
    student_optimizer.zero_grad()
    with torch.no_grad():
        for weight, saved in zip(weights, theta1, strict=True):
            weight.copy_(saved)

    a, b = (torch.cat([one.flatten() for one in side]) for side in (delta, query_gradient))
    dot = a @ b
    h = dot / (a.norm() * b.norm())
    applied = bool(-1 <= h <= 1)
    if applied:
        for word, gradient in zip(words, teacher_gradient, strict=True):
            word.grad = h * gradient if word.grad is None else word.grad + h * gradient
    (auxiliary_loss(teacher, batch) / settings.accumulation).backward()
    losses = (pseudo.detach(), support.detach(), query.detach())
    return Hard(pair_loss.detach(), losses, theta0, theta1, query_gradient, teacher_gradient, dot, h, applied)


def soft_step(
    student: nn.Module,
    teacher: nn.Module,
    student_optimizer: torch.optim.AdamW,
    batch: Batch,
    settings: Settings,
    auxiliary: bool = True,
) -> Soft:
    """1.7, points 1 to 6. Adds to the .grad of student and teacher; steps neither."""
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        found = _soft_step(student, teacher, student_optimizer, batch, settings)
    if auxiliary:
        found.auxiliary = auxiliary_loss(teacher, batch) / settings.accumulation
        found.auxiliary.backward()
    return found


def _soft_step(
    student: nn.Module, teacher: nn.Module, student_optimizer: torch.optim.AdamW, batch: Batch, settings: Settings
) -> Soft:
    padding = batch.text == PAD
    heads = teacher(batch.text, ~padding)
    x_soft = heads[0].softmax(-1)
    y_soft = batch.text if settings.fixed_target else heads[1].softmax(-1)

    copy = higher.monkeypatch(student, copy_initial_weights=True, track_higher_grads=True)
    for module, mine in zip(copy.modules(), student.modules(), strict=False):
        module.training = mine.training
    adamw = DifferentiableAdamW(student_optimizer, student.parameters(), fmodel=copy, track_higher_grads=True)
    pseudo = get_loss(copy(x_soft, ~padding), y_soft, padding)
    seen: list[Tensor] = []

    def note(gradients: list[Tensor]) -> list[Tensor]:
        seen.extend(gradients)
        return gradients

    adamw.step(pseudo / settings.accumulation, grad_callback=note)
    theta1 = list(copy.parameters())
    support = labelled_loss(copy, *batch.support, settings)
    gradients = torch.autograd.grad(support, theta1, create_graph=True)
    theta2 = [weight - settings.inner_lr * one for weight, one in zip(theta1, gradients, strict=True)]
    copy.update_params(theta2)
    query = labelled_loss(copy, *batch.query, settings)
    words = list(teacher.parameters())
    meta = torch.autograd.grad(settings.meta_weight * query / settings.accumulation, words, allow_unused=True)
    for word, gradient in zip(words, meta, strict=True):
        if gradient is not None:
            word.grad = gradient if word.grad is None else word.grad + gradient

    student_gradient = [one.detach() for one in seen]
    for weight, gradient in zip(student.parameters(), student_gradient, strict=True):
        weight.grad = gradient.clone() if weight.grad is None else weight.grad + gradient
    return Soft(
        (pseudo.detach(), support.detach(), query.detach()),
        student_gradient,
        [one.detach() for one in theta1],
        [one.detach() for one in theta2],
    )


def end_of_accumulation(
    network: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float, scheduler: object = None
) -> None:
    """1.6 point 8, 1.7 point 7: clip, step, schedule, forget."""
    nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    optimizer.zero_grad()


def inverse_power(warmup: int, total: float = float("inf"), power: float = -0.5, end: float = 0.0) -> Callable:
    """1.10: the factor of the scheduler's step index (0-based)."""
    a = (end - 1) / (total**power - 1)
    b = 1 - a

    def factor(index: int) -> float:
        s = index + 1
        if s >= total:
            return end
        if s < warmup:
            return s / warmup * (a * warmup**power + b)
        return a * s**power + b

    return factor


def _copies(weights: list[Tensor]) -> list[Tensor]:
    return [one.detach().clone() for one in weights]


def _backward(loss: Tensor, optimizer: torch.optim.Optimizer, weights: list[Tensor], max_norm: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, max_norm)
