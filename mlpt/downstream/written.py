"""Fine-tuning on a task as sequences in and out (MetaLMO, Shen 2021): no head, but the model's own token predictions.

Every window of an example is a row of training; what the windows of an example say is put together in prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mlpt.data.task_tokenizer import PAD
from mlpt.downstream.evaluate import Predictions, autocast
from mlpt.downstream.text_to_text import Reader, in_order
from mlpt.errors import UserError
from mlpt.tasks import Example, Task
from mlpt.tasks.batching import passes
from mlpt.tasks.features import NO_LABEL, Features
from mlpt.tasks.text_to_text import TextToTextConfig, Writer

_ROWS_A_PASS = 128


@dataclass(frozen=True)
class WrittenTask:
    """A task, the tokenizer and how its examples are written; `length` is the longest window.

    Raises `UserError`, from `features`, for a task without a format and a tokenizer without task tokens.
    """

    task: Task
    tokenizer: Any
    config: TextToTextConfig
    length: int

    def features(self, examples: Sequence[Example]) -> Features:
        """All windows of `examples` as rows; labels are the tokens to predict, at every position that has one."""
        if not examples:
            raise UserError(f"task '{self.task.name}' has a split without rows; check its file")
        written = self._writer().write(examples)
        tokens, labels, lengths, of = [], [], [], []
        for number, one in enumerate(written):
            for inputs, targets in zip(one.inputs, one.targets, strict=True):
                count = int((inputs != PAD).sum())
                tokens.append(inputs[:count])
                labels.append(np.where(targets[:count] == PAD, NO_LABEL, targets[:count]))
                lengths.append(count)
                of.append(number)
        ids = np.concatenate(tokens).astype(np.int32)
        known = all(example.label is not None for example in examples)
        return Features(
            ids,
            None,
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate(labels) if known else None,
            np.array(of, dtype=np.int64),
            PAD,
            words=np.zeros(len(ids), dtype=np.int32),
        )

    def lost_answers(self, examples: Sequence[Example]) -> float:
        """The share of the examples whose answer is to be copied and stands in no window."""
        writer = self._writer()
        return writer.without_answer(writer.write(examples)) / max(1, len(examples))

    @torch.no_grad()
    def predict(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        features: Features,
        tokens: int,
        device: torch.device,
        precision: str,
    ) -> Predictions:
        """What the model says of each example, over all of its windows; `tokens` go through it at once, padded."""
        training = model.training
        model.eval()
        reader = Reader(self._writer().format, self.tokenizer)
        for rows in passes(np.arange(len(features)), features.lengths, tokens, _ROWS_A_PASS):
            batch = features.batch(rows, device)
            with autocast(device, precision):
                logits = model(**batch).logits
            reader.add(logits, batch["input_ids"], features.example[rows].tolist())
        model.train(training)
        found = in_order(self.task, examples, reader.predictions())
        if self.task.kind == "span":
            found.n_best = [[(text, reader.copies[number][0])] for number, text in enumerate(found.values)]
        return found

    def _writer(self) -> Writer:
        config = self.config.model_copy(
            update={"max_length": self.length, "overlap": min(self.config.overlap, self.length // 2)}
        )
        return Writer(self.task, self.tokenizer, config)
