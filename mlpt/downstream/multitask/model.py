"""One encoder, a decoder for each task, and CA-MTL's loss: the mean over tasks of each task's mean loss.

Decoders of spans and of labelled words read the last hidden state of every token, the others the pooled row. The
encoder is a `ConditionalEncoder` or, as the multi-task baseline, a stock BERT or RoBERTa (`SharedEncoder`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlpt.downstream.losses import span_loss, word_loss
from mlpt.randomness import torch_generator
from mlpt.tasks.features import NO_LABEL
from mlpt.tasks.task import Kind

LabelDtype = Literal["task", "first_row"]


@dataclass(frozen=True)
class TaskBatch:
    """Rows of several tasks, padded to the longest among them.

    input_ids       (batch, length) int64.
    attention_mask  (batch, length) bool.
    task_ids        (batch,) int64, positions in the list of tasks.
    rows            task id -> (n,) int64, that task's rows; found on the CPU, so that no device is asked to count.
    labels          (batch,) float32: class ids, or a regression's values; None: unlabelled. 0 where a row's are below.
    token_type_ids  (batch, length) int64; None: all zero.
    spans           span task -> (its rows, 2) int64, first and last token of the answer.
    words           task of labelled words -> (its rows, length) int64 class ids, NO_LABEL where no word begins.
    """

    input_ids: Tensor
    attention_mask: Tensor
    task_ids: Tensor
    rows: dict[int, Tensor]
    labels: Tensor | None = None
    token_type_ids: Tensor | None = None
    spans: dict[int, Tensor] = field(default_factory=dict)
    words: dict[int, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "TaskBatch":
        """The same batch on `device`."""
        moved: dict[str, Any] = {
            one.name: value.to(device, non_blocking=True)
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), Tensor)
        }
        for name in ("rows", "spans", "words"):
            moved[name] = {task: one.to(device, non_blocking=True) for task, one in getattr(self, name).items()}
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

    def states(
        self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states (batch, length, hidden) and the pooled output (batch, hidden)."""
        out = self.stock(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return out.last_hidden_state, out.pooler_output


class MultitaskModel(nn.Module):
    """`encoder` and one decoder for each task: dropout and a linear map to its outputs.

    outputs  task name -> classes, 1 for a regression, 2 for (start, end) of a span; the order is that of the task ids.
    kinds    task name -> kind, of those that are not decided row by row: `span` and `token_classification`.
    """

    def __init__(self, encoder: Any, outputs: dict[str, int], seed: int = 0, kinds: Mapping[str, Kind] | None = None):
        super().__init__()
        self.encoder = encoder
        self.outputs = list(outputs.values())
        self.kinds = dict(kinds or {})
        of_task = [self.kinds.get(name) for name in outputs]
        self.spans = frozenset(task for task, kind in enumerate(of_task) if kind == "span")
        self.words = frozenset(task for task, kind in enumerate(of_task) if kind == "token_classification")
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
        """Task id -> mean loss of its rows, as `losses_of` defines it."""
        return losses_of(self.logits(batch), batch)

    def logits(self, batch: TaskBatch, states_of: Callable[..., Any] | None = None) -> dict[int, Tensor]:
        """Task id -> (its rows, outputs) float32, or (its rows, length, outputs) where it has outputs at every token.

        states_of  the encoder's `states`, compiled; decoders never are: which of them a batch needs changes with it.

        Each decoder sees its own task's rows only. No answer begins or ends in the padding: there a span's logits are
        the least that float32 has, so that a row's probabilities do not depend on the rows beside it.
        """
        states_of = states_of or self.encoder.states
        states, pooled = states_of(batch.input_ids, batch.attention_mask, batch.task_ids, batch.token_type_ids)
        pooled = self.dropout(pooled)
        decoders, found = list(self.decoders.values()), {}
        for task, rows in batch.rows.items():
            if task not in self.spans | self.words:
                found[task] = decoders[task](pooled[rows]).float()
                continue
            logits = decoders[task](self.dropout(states[rows])).float()  # (its rows, length, outputs)
            if task in self.spans:
                padding = ~batch.attention_mask[rows].bool().unsqueeze(2)
                logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
            found[task] = logits
        return found

    def entropies(self, batch: TaskBatch) -> Tensor:
        """(batch,) float32 on the model's device: entropy in nats of each row's prediction, 0 for a regression.

        Of a span: the mean of the entropies of the start's and the end's distribution over the row's tokens. Of a
        sentence: the mean over its labelled words of the entropy of each one's distribution over the labels.
        """
        found = torch.zeros(batch.task_ids.shape, device=batch.task_ids.device)
        for task, logits in self.logits(batch).items():
            found[batch.rows[task]] = self._entropies(task, logits, batch)
        return found

    def _entropies(self, task: int, logits: Tensor, batch: TaskBatch) -> Tensor:
        if task in self.spans:
            return entropy(logits.transpose(1, 2)).mean(1)
        if task in self.words:
            labelled = batch.words[task] != NO_LABEL  # (its rows, length)
            return (entropy(logits) * labelled).sum(1) / labelled.sum(1).clamp(min=1)
        return entropy(logits)


class TaskView(nn.Module):
    """One task of a `MultitaskModel` behind the interface of a stock classifier, for evaluation."""

    def __init__(self, model: MultitaskModel, task: int):
        super().__init__()
        self.model, self.task = model, task

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Any:
        """`.logits` of rows that all belong to the task, as `MultitaskModel.logits` has them."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = torch.arange(len(input_ids), device=input_ids.device)
        batch = TaskBatch(
            input_ids, mask.bool(), torch.full_like(rows, self.task), {self.task: rows}, None, token_type_ids
        )
        return SimpleNamespace(logits=self.model.logits(batch)[self.task])


def losses_of(logits: dict[int, Tensor], batch: TaskBatch) -> dict[int, Tensor]:
    """Task id -> mean loss of `logits` against the labels of its rows.

    Cross entropy in nats, squared error for a regression; for spans the mean of the start's and the end's cross entropy
    over the tokens of the row; for labelled words the mean over all words of the task's rows.
    """
    assert batch.labels is not None
    losses = {}
    for task, of_task in logits.items():
        if task in batch.spans:
            losses[task] = span_loss(of_task[..., 0], of_task[..., 1], batch.spans[task])
        elif task in batch.words:
            losses[task] = word_loss(of_task, batch.words[task])
        else:
            losses[task] = _loss(of_task, batch.labels[batch.rows[task]])
    return losses


def mean_of_tasks(losses: dict[int, Tensor]) -> Tensor:
    """The unweighted mean over the tasks present: a task with one row weighs as much as a task with many."""
    return torch.stack(list(losses.values())).mean()


def entropy(logits: Tensor) -> Tensor:
    """(..., classes) -> (...): entropy of the softmax in nats, float32 at least, whatever the dtype of the logits."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return nn.functional.mse_loss(logits.squeeze(1), labels.to(logits.dtype))
    return nn.functional.cross_entropy(logits, labels.long())
