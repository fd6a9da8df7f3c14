"""Rows of several tasks in one batch, padded to the longest of them and no further."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlpt.downstream.multitask_model import LabelDtype, TaskBatch, label_tensor, rows_of_tasks
from mlpt.downstream.samplers import Row


@dataclass(frozen=True)
class EncodedRows:
    """One split of one task as token ids. Nothing in it depends on which other tasks are trained (CA-8).

    input_ids       of each row, unpadded, with the special tokens.
    token_type_ids  likewise, 0 and 1 for first and second text; None: the model has no types.
    labels          class ids (int) or a regression's values (float); None: unlabelled.
    """

    input_ids: Sequence[Sequence[int]]
    token_type_ids: Sequence[Sequence[int]] | None = None
    labels: Sequence[int | float] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


class Collator:
    """Makes a `TaskBatch` of (task, row) pairs; `tasks` holds the rows of each task by task id, `pad` the padding id."""

    def __init__(self, tasks: Sequence[EncodedRows], pad: int, label_dtype: LabelDtype = "task"):
        self.tasks, self.pad, self.label_dtype = list(tasks), pad, label_dtype

    def __call__(self, rows: Sequence[Row]) -> TaskBatch:
        """A batch of `rows`, in their order."""
        ids = [self.tasks[task].input_ids[row] for task, row in rows]
        lengths = torch.tensor([len(one) for one in ids])
        mask = torch.arange(int(lengths.max())).unsqueeze(0) < lengths.unsqueeze(1)  # (batch, longest)
        tasks = [task for task, _ in rows]
        return TaskBatch(
            input_ids=_padded(ids, mask, self.pad),
            attention_mask=mask,
            task_ids=torch.tensor(tasks),
            rows=rows_of_tasks(tasks),
            labels=self._labels(rows),
            token_type_ids=self._types(rows, mask),
        )

    def chunks(self, rows: Sequence[Row], tokens: int) -> Iterator[list[int]]:
        """Places in `rows`, of similar length together, in chunks of at most `tokens` padded tokens (one row at least)."""
        lengths = [len(self.tasks[task].input_ids[row]) for task, row in rows]
        chunk: list[int] = []
        for place in sorted(range(len(rows)), key=lambda place: lengths[place]):
            if chunk and (len(chunk) + 1) * lengths[place] > tokens:
                yield chunk
                chunk = []
            chunk.append(place)
        if chunk:
            yield chunk

    def _labels(self, rows: Sequence[Row]) -> Tensor | None:
        labels = [None if (own := self.tasks[task].labels) is None else own[row] for task, row in rows]
        known = [label for label in labels if label is not None]
        return label_tensor(known, self.label_dtype) if len(known) == len(rows) else None

    def _types(self, rows: Sequence[Row], mask: Tensor) -> Tensor | None:
        types = [None if (own := self.tasks[task].token_type_ids) is None else own[row] for task, row in rows]
        known = [one for one in types if one is not None]
        return _padded(known, mask, 0) if len(known) == len(rows) else None


def _padded(values: Sequence[Sequence[int]], mask: Tensor, fill: int) -> Tensor:
    """(batch, longest) int64: `values` where `mask` is True, `fill` elsewhere."""
    padded = torch.full(mask.shape, fill, dtype=torch.int64)
    padded[mask] = torch.tensor([number for one in values for number in one])
    return padded
