"""Reading predictions off a network that predicts one token at every position (MetaLMO, Shen 2021), and its scores.

The counterpart of `mlpt.tasks.text_to_text`. Predictions are gathered over batches, because the windows of one example
may lie in several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mlpt.data.task_tokenizer import PAD, SEP
from mlpt.downstream.evaluate import Predictions, score
from mlpt.errors import UserError
from mlpt.tasks import TASKS, Example, Task
from mlpt.tasks.metrics import benchmark_average
from mlpt.tasks.text_to_text import Format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def label_scores(logits: Tensor, inputs: Tensor, labels: Sequence[int]) -> Tensor:
    """(rows, labels) float32: the mean logit of each label's token over all positions, padding counted as 0.

    logits  (rows, length, vocabulary). inputs: (rows, length) int64. labels: token ids.
    """
    picked = logits[..., list(labels)].float()  # (rows, length, labels)
    return (picked * (inputs != PAD).unsqueeze(-1)).mean(dim=1)


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


def masked_accuracy(logits: Tensor, inputs: Tensor, labels: Tensor) -> float:
    """Mean over sequences of the share of positions with a label (not PAD) that are predicted; 1 without any label.

    Where the input is padding, padding is predicted. `logits` is (rows, length, vocabulary); the others (rows, length).
    """
    predicted = torch.where(inputs == PAD, PAD, logits.argmax(dim=-1))
    asked = labels != PAD
    right = ((predicted == labels) & asked).sum(dim=1)
    count = asked.sum(dim=1)
    return torch.where(count > 0, right / count.clamp(min=1), 1.0).mean().item()


@dataclass
class Reader:
    """Gathers the windows of a task's examples and says what is predicted of each.

    sums    label scores of each example, summed over its windows, and their number.
    copies  the likeliest copied answer of each example.
    """

    format: Format
    tokenizer: "PreTrainedTokenizerFast"
    sums: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    copies: dict[int, tuple[float, list[int]]] = field(default_factory=dict)

    def add(self, logits: Tensor, inputs: Tensor, examples: Sequence[int]) -> None:
        """Take in a batch: `examples` are the numbers of the examples that its rows are windows of."""
        if self.format.labels:
            for example, scores in zip(examples, label_scores(logits, inputs, self.format.labels).cpu(), strict=True):
                before, count = self.sums.get(int(example), (torch.zeros_like(scores), 0))
                self.sums[int(example)] = (before + scores, count + 1)
            return
        for example, answer in zip(examples, copied_answers(logits, inputs), strict=True):
            if answer[0] > self.copies.get(int(example), (float("-inf"), []))[0]:
                self.copies[int(example)] = answer
            self.copies.setdefault(int(example), answer)

    def scores(self, example: int) -> Tensor:
        """(labels,) the mean over an example's windows of its label scores."""
        total, count = self.sums[example]
        return total / count

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
    _check_all(task, len(examples), found)
    return Predictions([found[number] for number in range(len(examples))])


def score_found(task: Task, examples: Sequence[Example], found: Mapping[int, Any], strict: bool) -> dict[str, float]:
    """The task's metrics over the examples that have a prediction in `found`, by number.

    strict  every example must have one (a whole validation set); otherwise those without are left out (a part of it).
    Raises `UserError` where one is missing though it must not be.
    """
    if strict:
        _check_all(task, len(examples), found)
    numbers = [number for number in range(len(examples)) if number in found]
    return score(task, [examples[number] for number in numbers], [found[number] for number in numbers])


def overall(scores: Mapping[str, Mapping[str, float]], losses: Mapping[str, float]) -> dict[str, float]:
    """MetaLMO's summary of what was evaluated: percentages, and losses in nats.

    scores  by task: its metrics as fractions. "mlm" is the accuracy of masked language modelling.
    losses  by task.

    SuperGLUE  the mean over its tasks of the mean of each one's metrics. MLM: its accuracy. Overall: the mean of both,
               or of the one there is. Likewise SuperGLUE_loss, MLM_loss and loss. Every two-moons task for itself.
    """
    found: dict[str, float] = {}
    glue = [name for name in scores if name in TASKS and TASKS[name].benchmark == "superglue"]
    if glue:
        found["SuperGLUE"] = 100 * benchmark_average(
            {name: scores[name] for name in glue}, {name: list(scores[name]) for name in glue}
        )
    if "mlm" in scores:
        found["MLM"] = 100 * scores["mlm"]["accuracy"]
    found |= {name: 100 * value["accuracy"] for name, value in scores.items() if name.startswith("two_moons")}
    glue_losses = [losses[name] for name in losses if name in TASKS and TASKS[name].benchmark == "superglue"]
    if glue_losses:
        found["SuperGLUE_loss"] = float(np.mean(glue_losses))
    if "mlm" in losses:
        found["MLM_loss"] = losses["mlm"]
    for name, parts in (("Overall", ("MLM", "SuperGLUE")), ("loss", ("MLM_loss", "SuperGLUE_loss"))):
        if present := [found[part] for part in parts if part in found]:
            found[name] = float(np.mean(present))
    return found


@dataclass
class Best:
    """The best value of every metric and the step it was seen at; losses are better when they are lower."""

    values: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def update(self, found: Mapping[str, float], step: int) -> list[str]:
        """The metrics that are strictly better than ever before: whose checkpoint is to be kept. NaN never is."""
        better = []
        for name, value in found.items():
            sign = -1 if name.endswith("loss") else 1
            if not np.isnan(value) and (name not in self.values or sign * value > sign * self.values[name]):
                self.values[name], self.steps[name] = value, step
                better.append(name)
        return better


def part_of(examples: Sequence[Example], size: int, generator: np.random.Generator) -> list[int]:
    """Numbers of about `size` examples in a random order, for frequent evaluation: whole questions, where several rows
    belong to one, as many as reach `size`."""
    groups: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(example.group or number, []).append(number)
    listed = list(groups.values())
    taken: list[int] = []
    for place in generator.permutation(len(listed)):
        if len(taken) >= size:
            break
        taken += listed[place]
    return taken


def _check_all(task: Task, count: int, found: Mapping[int, Any]) -> None:
    missing = [number for number in range(count) if number not in found]
    if missing:
        raise UserError(
            f"task '{task.name}': {len(missing)} of {count} rows have no prediction (the first is row {missing[0]}); "
            "predict all of them"
        )
