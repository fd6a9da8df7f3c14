"""Reading predictions off a network that predicts one token at every position (MetaLMO, Shen 2021).

The counterpart of `mlpt.tasks.text_to_text`. Predictions are gathered over batches, because the windows of one example
may lie in several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlpt.data.task_tokenizer import PAD, SEP
from mlpt.downstream.evaluate import Predictions
from mlpt.errors import UserError
from mlpt.tasks import Example, Task
from mlpt.tasks.text_to_text import Format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def label_scores(logits: Tensor, inputs: Tensor, labels: Sequence[int]) -> Tensor:
    """(rows, labels) float32: the mean logit of each label's token over all positions, padding counted as 0.

    logits  (rows, length, vocabulary). inputs: (rows, length) int64. labels: token ids.
    """
    return _real_logits(logits, inputs, labels).mean(dim=1)


def _real_logits(logits: Tensor, inputs: Tensor, labels: Sequence[int]) -> Tensor:
    """(rows, length, labels) float32: the logits of the labels' tokens, 0 at padding."""
    return logits[..., list(labels)].float() * (inputs != PAD).unsqueeze(-1)


def copied_answers(logits: Tensor, inputs: Tensor) -> list[tuple[float, list[int]]]:
    """Of each row, the answer that it copies: the log-probability of its likeliest token, and its ids.

    At every position the likeliest token is taken; a run of others than "nothing" (the separator) is an answer, and the
    run that holds the single likeliest token is the row's. Nothing: (-inf, []). Arguments as of `label_scores`.
    """
    logs, ids = logits.float().log_softmax(dim=-1).max(dim=-1)  # (rows, length)
    ids = torch.where(inputs == PAD, SEP, ids)
    logs = torch.where(ids == SEP, -torch.inf, logs)
    found = []
    for row_ids, row_logs in zip(ids.tolist(), logs, strict=True):
        best = int(row_logs.argmax())
        start = stop = best
        if row_ids[best] != SEP:
            stop += 1
            while start > 0 and row_ids[start - 1] != SEP:
                start -= 1
            while stop < len(row_ids) and row_ids[stop] != SEP:
                stop += 1
        found.append((float(row_logs[best]), row_ids[start:stop]))
    return found


@dataclass
class Reader:
    """Gathers the windows of a task's examples and says what is predicted of each.

    The published code pads the windows of an example to the longest of them and takes means over that width. Batches
    may pad them otherwise, so logits are summed, and divided when all windows are there.

    sums    of each example, the logits of its labels, summed over the tokens of its windows; the number of windows,
            and the tokens of the longest.
    copies  the likeliest copied answer of each example.
    """

    format: Format
    tokenizer: "PreTrainedTokenizerFast"
    sums: dict[int, tuple[Tensor, int, int]] = field(default_factory=dict)
    copies: dict[int, tuple[float, list[int]]] = field(default_factory=dict)

    def add(self, logits: Tensor, inputs: Tensor, examples: Sequence[int]) -> None:
        """Take in a batch: `examples` are the numbers of the examples that its rows are windows of."""
        if self.format.labels:
            summed = _real_logits(logits, inputs, self.format.labels).sum(dim=1).cpu()
            tokens = (inputs != PAD).sum(dim=1).tolist()
            for example, of_window, length in zip(examples, summed, tokens, strict=True):
                before, windows, longest = self.sums.get(int(example), (torch.zeros_like(of_window), 0, 0))
                self.sums[int(example)] = (before + of_window, windows + 1, max(longest, length))
            return
        for example, answer in zip(examples, copied_answers(logits, inputs), strict=True):
            if answer[0] > self.copies.get(int(example), (float("-inf"), []))[0]:
                self.copies[int(example)] = answer
            self.copies.setdefault(int(example), answer)

    def scores(self, example: int) -> Tensor:
        """(labels,) the mean over an example's windows of its label scores, each over the longest window's tokens."""
        total, windows, longest = self.sums[example]
        return total / (windows * longest)

    def predictions(self) -> dict[int, Any]:
        """By example: the label's id, or the text of the copied answer ("" for none)."""
        if self.format.labels:
            return {example: self._label(self.scores(example)) for example in self.sums}
        return {example: self._text(ids) for example, (_, ids) in self.copies.items()}

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()

    def _label(self, scores: Tensor) -> int:
        order = list(self.format.tie_order)
        return order[int(scores[order].argmax())]


def in_order(task: Task, examples: Sequence[Example], found: Mapping[int, Any]) -> Predictions:
    """A prediction of every example, as submissions want them. Raises `UserError` where one is missing."""
    missing = [number for number in range(len(examples)) if number not in found]
    if missing:
        raise UserError(
            f"task '{task.name}': {len(missing)} of {len(examples)} rows have no prediction (the first is row "
            f"{missing[0]}); predict all of them"
        )
    return Predictions([found[number] for number in range(len(examples))])
