"""One encoder, a decoder for each task, and CA-MTL's loss: the mean over tasks of each task's mean loss.

The encoder is a `ConditionalEncoder` or, as the multi-task baseline, a stock BERT or RoBERTa (`SharedEncoder`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlpt.randomness import torch_generator

LabelDtype = Literal["task", "first_row"]


@dataclass(frozen=True)
class TaskBatch:
    """Rows of several tasks, padded to the longest among them.

    input_ids       (batch, length) int64.
    attention_mask  (batch, length) bool.
    task_ids        (batch,) int64, positions in the list of tasks.
    rows            task id -> (n,) int64, that task's rows; found on the CPU, so that no device is asked to count.
    labels          (batch,) float32: class ids, or a regression's values; None: unlabelled.
    token_type_ids  (batch, length) int64; None: all zero.
    """

    input_ids: Tensor
    attention_mask: Tensor
    task_ids: Tensor
    rows: dict[int, Tensor]
    labels: Tensor | None = None
    token_type_ids: Tensor | None = None

    def to(self, device: torch.device | str) -> "TaskBatch":
        """The same batch on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        moved["rows"] = {task: rows.to(device, non_blocking=True) for task, rows in self.rows.items()}
        return replace(self, **moved)


def rows_of_tasks(tasks: Sequence[int]) -> dict[int, Tensor]:
    """Task id -> its rows' positions in `tasks`, tasks ascending."""
    ids = torch.tensor(tasks)
    return {task: (ids == task).nonzero().squeeze(1) for task in sorted(set(tasks))}


def label_tensor(labels: Sequence[float], dtype: LabelDtype) -> Tensor:
    """(batch,) float32 labels of a batch of several tasks.

    dtype   `task` keeps every label whole (class ids are exact in float32). `first_row` is the published collator,
            which reads the dtype off the first label and so cuts off the decimals of STS-B behind a class id (CA-1).
    """
    if dtype == "first_row" and isinstance(labels[0], int):
        return torch.tensor([int(label) for label in labels]).float()
    return torch.tensor([float(label) for label in labels])


class SharedEncoder(nn.Module):
    """A stock BERT or RoBERTa with pooler behind the interface of `ConditionalEncoder`; the task is not looked at."""

    def __init__(self, stock: Any):
        super().__init__()
        self.stock = stock
        self.config = stock.config

    @property
    def hidden_size(self) -> int:
        """Width of the pooled output."""
        return self.config.hidden_size

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Pooled output, (batch, hidden)."""
        return self.stock(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).pooler_output


class MultitaskModel(nn.Module):
    """`encoder` (pooled rows out) and one decoder for each task: dropout and a linear map to its outputs.

    outputs  task name -> classes, or 1 for a regression; the order is that of the task ids.
    """

    def __init__(self, encoder: Any, outputs: dict[str, int], seed: int = 0):
        super().__init__()
        self.encoder = encoder
        self.outputs = list(outputs.values())
        self.dropout = nn.Dropout(0.1)
        self.decoders = nn.ModuleDict({name: nn.Linear(encoder.hidden_size, n) for name, n in outputs.items()})
        generator = torch_generator(seed, "decoders")
        for decoder in self.decoders.values():
            assert isinstance(decoder, nn.Linear)
            if not decoder.weight.is_meta:
                nn.init.normal_(decoder.weight, std=encoder.config.initializer_range, generator=generator)
                nn.init.zeros_(decoder.bias)

    def forward(self, batch: TaskBatch) -> Tensor:
        """The scalar float32 loss of a labelled batch; a plain tensor on the model's device, as DDP needs (CA-7)."""
        return mean_of_tasks(self.task_losses(batch))

    def task_losses(self, batch: TaskBatch) -> dict[int, Tensor]:
        """Task id -> mean loss of its rows: cross entropy in nats, squared error for a regression."""
        return losses_of(self.logits(batch), batch)

    def logits(self, batch: TaskBatch) -> dict[int, Tensor]:
        """Task id -> (its rows, outputs) float32. Each decoder sees its own task's rows only."""
        pooled = self.encoder(batch.input_ids, batch.attention_mask, batch.task_ids, batch.token_type_ids)
        pooled = self.dropout(pooled)
        decoders = list(self.decoders.values())
        return {task: decoders[task](pooled[rows]).float() for task, rows in batch.rows.items()}

    def entropies(self, batch: TaskBatch) -> Tensor:
        """(batch,) float32 on the model's device: entropy in nats of each row's prediction, 0 for a regression."""
        found = torch.zeros(batch.task_ids.shape, device=batch.task_ids.device)
        for task, logits in self.logits(batch).items():
            found[batch.rows[task]] = entropy(logits)
        return found


def losses_of(logits: dict[int, Tensor], batch: TaskBatch) -> dict[int, Tensor]:
    """Task id -> mean loss of `logits` (rows, outputs) against the labels of those rows."""
    assert batch.labels is not None
    return {task: _loss(rows_logits, batch.labels[batch.rows[task]]) for task, rows_logits in logits.items()}


def mean_of_tasks(losses: dict[int, Tensor]) -> Tensor:
    """The unweighted mean over the tasks present: a task with one row weighs as much as a task with many."""
    return torch.stack(list(losses.values())).mean()


def entropy(logits: Tensor) -> Tensor:
    """(n, classes) -> (n,): entropy of the softmax in nats, float32 at least, whatever the dtype of the logits."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return nn.functional.mse_loss(logits.squeeze(1), labels.to(logits.dtype))
    return nn.functional.cross_entropy(logits, labels.long())
