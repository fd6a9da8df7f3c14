r"""Texts to token ids: what `tokenizers` gives, several times as fast where words come again.

Tokenizers built as BERT's and RoBERTa's (those trained here are) never look beyond a word, so the ids of a text are
those of its words, one after another: each word is encoded once and then looked up. Other tokenizers, and text whose
words do not come again (that of languages without spaces), are encoded as they are.
"""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mlpt.data.packing import Ids

REMEMBERED = 2 << 20  # characters of words in memory, some 50 MB with all that belongs to them; more begin anew
NEW_SHARE, NEW_FEW = 0.5, 4096  # of a batch's words: more new ones cost more to remember than they save

# BERT cuts at ASCII's punctuation and at these spaces whatever stands beside them. (Not at all that `\s` means: of the
# control characters in it BERT removes some, joining what stands around them.)
_BERT_WORD = re.compile(r"[^ \t\n\r!-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]")

# GPT-2's pattern, which byte-level tokenizers have, always ends a word before a space between two characters that are
# none, and a run of letters before any other ASCII character; its words begin with their space. In this order: letters;
# anything up to such a space; the same across runs of other spaces; the rest.
_BYTE_LEVEL_WORD = re.compile(
    r" ?[A-Za-z]++(?=[\x00-\x7f]|\Z)| ?\S++(?= \S|\Z)|[\s\S]+?(?<=\S)(?= \S)|[\s\S]+"  # possessive: never half a run
)


class TextEncoder:
    """Encodes texts with the tokenizer that `json_text` describes, special ids left out, as arrays of `dtype`.

    A special token written in a text ("[SEP]") is text.
    """

    def __init__(self, json_text: str, dtype: str):
        self.tokenizer = Tokenizer.from_str(json_text)
        self.tokenizer.encode_special_tokens = True
        self.dtype: Any = np.dtype(dtype)
        self._words_of = _words_of(json.loads(json_text))
        self._places: _Places
        self._ends: NDArray[np.int64]  # the word at place n has _ids[_ends[n]:_ends[n + 1]]
        self._ids: Ids
        self._forget()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        if self._words_of is None:
            return self._direct(texts)
        words = [self._words_of(text) for text in texts]
        count = sum(map(len, words))
        places = np.fromiter(map(self._places.__getitem__, itertools.chain.from_iterable(words)), np.int64, count)
        if len(self._places.new) > max(NEW_FEW, NEW_SHARE * count):
            self._places.take_back()
            return self._direct(texts)
        self._remember(self._places.settle())
        ids, ends = self._ids_of(places)
        last = np.cumsum([len(one) for one in words])  # words up to the end of each text
        if self._size > REMEMBERED:
            self._forget()
        return np.split(ids, np.concatenate([[0], ends])[last[:-1]]) if texts else []

    def _ids_of(self, places: NDArray[np.int64]) -> tuple[Ids, NDArray[np.int64]]:
        """The ids of words, one after another, and where in them each word ends."""
        lengths = self._ends[places + 1] - self._ends[places]
        ends = np.cumsum(lengths)
        # Each word's first id in the store, less its first place in the result, and then 0, 1, 2, ...
        shift = np.repeat(self._ends[places] - (ends - lengths), lengths)
        ids: Ids = self._ids[shift + np.arange(len(shift))]
        return ids, ends

    def _remember(self, new: list[str]) -> None:
        if not new:
            return
        encoded = self._direct(new)
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(new))
        self._ends = np.concatenate([self._ends, self._ends[-1] + np.cumsum(lengths)])
        self._ids = np.concatenate([self._ids, *encoded])
        self._size += sum(map(len, new))

    def _forget(self) -> None:
        self._places, self._size = _Places(), 0
        self._ends = np.zeros(1, dtype=np.int64)
        self._ids = np.empty(0, dtype=self.dtype)

    def _direct(self, texts: Sequence[str]) -> list[Ids]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=self.dtype) for one in encodings]


class _Places(dict[str, int]):
    """Words numbered as they are first asked for; `new`: those since `settle` or `take_back`."""

    def __init__(self) -> None:
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        self.new.append(word)
        self[word] = place = len(self)
        return place

    def settle(self) -> list[str]:
        """The new words, which are not new any more."""
        new, self.new = self.new, []
        return new

    def take_back(self) -> None:
        """Forget the new words."""
        for word in self.settle():
            del self[word]


def _words_of(description: dict[str, Any]) -> Callable[[str], list[str]] | None:
    """How a text can be cut so that the ids of the parts are those of the text; None where that isn't known."""
    if any(not token["special"] for token in description.get("added_tokens") or ()):
        return None  # it may hold a space
    model, normalizer, words = (description.get(part) or {} for part in ("model", "normalizer", "pre_tokenizer"))
    kinds = model.get("type"), normalizer.get("type"), words.get("type")
    if kinds == ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
        return _BERT_WORD.findall
    if kinds == ("BPE", None, "ByteLevel") and words.get("use_regex") and not words.get("add_prefix_space"):
        return None if model.get("dropout") else _BYTE_LEVEL_WORD.findall
    return None
