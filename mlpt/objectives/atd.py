"""Added token detection (MOMETAS, Wu et al., 2022): find the random tokens that were inserted into a text."""

import torch
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.objectives.base import Inputs
from mlpt.objectives.detection import TokenDetection
from mlpt.objectives.mlm import skip_ids


class AddedTokenDetection(TokenDetection):
    """Random tokens are inserted and the text moves right; what no longer fits is lost."""

    name = "atd"

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        tokens = batch.tokens  # (batch, length)
        marks = torch.rand(tokens.shape, generator=generator) < self.config.probability
        # Any token may be inserted but padding, which would end the text.
        ids = torch.randint(self.vocabulary.size - 1, tokens.shape, generator=generator)
        random_ids = skip_ids(ids, (self.vocabulary.pad,))
        corrupted, labels = add_tokens(tokens, marks, random_ids, self.vocabulary.pad, self.vocabulary.sep)
        documents = None if batch.documents is None else batch.documents.gather(1, read_from(marks))
        return self.inputs(tokens, corrupted, labels, documents)


def add_tokens(tokens: Tensor, marks: Tensor, random_ids: Tensor, pad: int, sep: int) -> tuple[Tensor, Tensor]:
    """Insert `random_ids` at the marked places of the output; return it and its labels (1: inserted).

    All (batch, length); `marks` bool. The first and the last place are never inserted. The text ends at its first
    `pad`; a text that reaches the last place ends with `sep` there.
    """
    moved = tokens.gather(1, read_from(marks))
    ended = (moved == pad).cummax(1).values  # nothing follows the first pad
    added = _inside(marks) & ~ended
    corrupted = torch.where(added, random_ids, moved).masked_fill(ended, pad)
    corrupted[:, -1].masked_fill_(~ended[:, -1], sep)
    return corrupted, added.long()


def read_from(marks: Tensor) -> Tensor:
    """(batch, length) int64: the place that each place of the output reads; an inserted token has that of the next."""
    inserted = _inside(marks).long()
    return torch.arange(marks.shape[1]) - (inserted.cumsum(1) - inserted)


def _inside(marks: Tensor) -> Tensor:
    marks = marks.clone()
    marks[:, 0] = marks[:, -1] = False
    return marks
