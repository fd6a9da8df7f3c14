"""What objectives need to know of a tokenizer: its size and its special ids, as plain numbers."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """Size and special ids of a tokenizer; picklable, comparable, and independent of the tokenizer's class.

    `cls` and `sep` are the ids that open and close a sequence in the architecture's own convention
    (BERT's [CLS]/[SEP], RoBERTa's <s>/</s>). A tokenizer that can write every text has no unknown token of its own:
    `unk` is then another special id. `extra` are further special ids, such as MetaLMO's task tokens: as little as the
    others are they masked, predicted or drawn.
    """

    size: int
    pad: int
    mask: int
    cls: int
    sep: int
    unk: int
    extra: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", tuple(self.extra))  # from JSON it comes as a list

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """Read a transformers tokenizer. `size` counts added tokens."""
        named = cls(
            size=len(tokenizer),
            pad=tokenizer.pad_token_id,
            mask=tokenizer.mask_token_id,
            cls=tokenizer.cls_token_id,
            sep=tokenizer.sep_token_id,
            unk=tokenizer.unk_token_id,
        )
        return replace(named, extra=tuple(sorted({*tokenizer.all_special_ids} - {*named.special_ids})))

    def as_json(self) -> dict[str, int | list[int]]:
        """For `Vocabulary(**...)`; without `extra` where there is none, as vocabularies were always written."""
        values = {name: value for name, value in vars(self).items() if name != "extra"}
        return values | ({"extra": list(self.extra)} if self.extra else {})

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The special ids, ascending, each once."""
        return tuple(sorted({self.pad, self.mask, self.cls, self.sep, self.unk, *self.extra}))

    def is_special(self, tokens: "Tensor") -> "Tensor":
        """Bool tensor of the shape of `tokens` (any integer dtype): True where the id is special."""
        special = _special_table(self, tokens.device)  # a look-up takes a fifth of the time of torch.isin
        return special.index_select(0, tokens.reshape(-1).long()).view(tokens.shape)


@lru_cache(maxsize=8)
def _special_table(vocabulary: Vocabulary, device: "torch.device") -> "Tensor":
    """(size,) bool, True at the special ids."""
    import torch  # slow to import, and not needed to prepare text

    table = torch.zeros(vocabulary.size, dtype=torch.bool)
    table[list(vocabulary.special_ids)] = True
    return table.to(device)
