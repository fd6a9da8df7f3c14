"""Deleted token detection (MOMETAS, Wu et al., 2022): find the places where tokens were removed from a text."""

import torch
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.objectives.base import Inputs
from mlpt.objectives.detection import TokenDetection


class DeletedTokenDetection(TokenDetection):
    """Tokens are deleted and the text moves left; padding fills the end."""

    name = "dtd"

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        tokens = batch.tokens  # (batch, length)
        marks = torch.rand(tokens.shape, generator=generator) < self.config.probability
        corrupted, labels = delete_tokens(tokens, marks, self.vocabulary.pad)
        documents = None if batch.documents is None else moved_left(batch.documents, tokens, marks, self.vocabulary.pad)
        return self.inputs(tokens, corrupted, labels, documents)


def delete_tokens(tokens: Tensor, marks: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Delete the marked tokens; return what is left and its labels (1: something was deleted just before).

    All (batch, length); `marks` bool. The first and the last place and padding are never deleted. When the last token
    of a padded text is deleted, the label is on the first pad.
    """
    batch, length = tokens.shape
    deleted = _deleted(tokens, marks, pad)
    follows_deletion = deleted.roll(1, dims=1)  # the last place is never deleted, so nothing wraps around
    place = _places(deleted)
    corrupted = tokens.new_full((batch, length + 1), pad).scatter_(1, place, tokens)
    labels = tokens.new_zeros((batch, length + 1)).scatter_(1, place, follows_deletion.to(tokens.dtype))
    return corrupted[:, :length].contiguous(), labels[:, :length].contiguous()


def moved_left(documents: Tensor, tokens: Tensor, marks: Tensor, pad: int) -> Tensor:
    """The `documents` of what `delete_tokens` leaves, (batch, length) int64; what fills the end is of the last one."""
    length = tokens.shape[1]
    filled = documents[:, -1:].repeat(1, length + 1)
    return filled.scatter_(1, _places(_deleted(tokens, marks, pad)), documents)[:, :length].contiguous()


def _deleted(tokens: Tensor, marks: Tensor, pad: int) -> Tensor:
    deleted = marks & (tokens != pad)
    deleted[:, 0] = deleted[:, -1] = False
    return deleted


def _places(deleted: Tensor) -> Tensor:
    """(batch, length) int64: how many tokens are kept before each; of deleted ones, a column that is cut off."""
    kept = ~deleted
    return torch.where(kept, kept.cumsum(1) - 1, deleted.shape[1])
