"""Mean losses of labelled rows in float32, by what a task asks for."""

from typing import Any

from torch import Tensor
from torch.nn import functional

from mlpt.tasks import Task
from mlpt.tasks.features import NO_LABEL


def loss_of(task: Task, outputs: Any, targets: Tensor) -> Tensor:
    """Mean loss of a batch of `task`; `outputs` are a stock model's, `targets` those of `Features.targets`."""
    if task.kind == "span":
        return span_loss(outputs.start_logits, outputs.end_logits, targets)
    logits = outputs.logits.float()
    if task.kind == "token_classification":
        return word_loss(logits, targets)
    if task.kind == "regression":
        return functional.mse_loss(logits[:, 0], targets)
    return functional.cross_entropy(logits, targets)


def span_loss(start: Tensor, end: Tensor, targets: Tensor) -> Tensor:
    """The mean of the start's and the end's cross entropy over all positions of the window (Devlin et al., 2019, 4.2).

    start, end  (rows, length) logits. targets: (rows, 2) int64 positions.
    """
    both = [functional.cross_entropy(logits.float(), targets[:, side]) for side, logits in enumerate((start, end))]
    return (both[0] + both[1]) / 2


def word_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats, mean over all labelled words of the rows; 0 where there are none.

    logits  (rows, length, labels). targets: (rows, length) int64, NO_LABEL at tokens that begin no word.
    """
    summed = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=NO_LABEL, reduction="sum"
    )
    return summed / (targets != NO_LABEL).sum().clamp(min=1)
