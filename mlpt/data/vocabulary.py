"""What objectives need to know of a tokenizer: its size and its special ids, as plain numbers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """Size and special ids of a tokenizer; picklable, comparable, and independent of the tokenizer's class.

    `cls` and `sep` are the ids that open and close a sequence in the architecture's own convention
    (BERT's [CLS]/[SEP], RoBERTa's <s>/</s>).
    """

    size: int
    pad: int
    mask: int
    cls: int
    sep: int
    unk: int

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """Read a transformers tokenizer. `size` counts added tokens."""
        return cls(
            size=len(tokenizer),
            pad=tokenizer.pad_token_id,
            mask=tokenizer.mask_token_id,
            cls=tokenizer.cls_token_id,
            sep=tokenizer.sep_token_id,
            unk=tokenizer.unk_token_id,
        )

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The special ids, ascending, each once."""
        return tuple(sorted({self.pad, self.mask, self.cls, self.sep, self.unk}))

    def is_special(self, tokens: Tensor) -> Tensor:
        """Bool tensor of the shape of `tokens` (any integer dtype): True where the id is special."""
        return torch.isin(tokens, torch.tensor(self.special_ids, dtype=tokens.dtype, device=tokens.device))
