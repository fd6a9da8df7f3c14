"""Tasks as sequences in and sequences out (MetaLMO, Shen 2021): one token to predict at every position of the input.

The first token says which task it is. A class is one token, repeated at every position; an answer that stands in the
text is its own tokens, and the separator everywhere else. One network without any task's head does all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from tokenizers import Encoding, Tokenizer

from mlpt.data.task_tokenizer import MASK, PAD, SEP, task_token
from mlpt.errors import UserError
from mlpt.settings import Settings
from mlpt.tasks.task import Example, Task
from mlpt.tasks.two_moons import TWO_MOONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXT_TOKEN, MLM_TOKEN = task_token(0), task_token(1)  # plain text, and masked language modelling
_NO, _YES = SEP, -1  # -1: the task's own token

# task: its token's number, and the tokens of its labels in the order in which ties are decided. None: copied spans.
_FORMATS: dict[str, tuple[int, dict[str, int] | None]] = {
    "boolq": (2, {"False": _NO, "True": _YES}),
    "cb": (3, {"contradiction": _NO, "entailment": _YES, "neutral": MASK}),
    "copa_pair": (4, {"0": _NO, "1": _YES}),
    "multirc": (5, {"0": _NO, "1": _YES}),
    "record_span": (6, None),
    "superglue_rte": (7, {"not_entailment": _NO, "entailment": _YES}),
    "wic": (8, {"False": _NO, "True": _YES}),
    "wsc": (9, {"False": _NO, "True": _YES}),
    **{name: (2, {"0": _NO, "1": _YES}) for name in TWO_MOONS},
}


class FormatConfig(Settings):
    """Where the published formats differ from what they were meant to be."""

    cb_entailment_of_copa: bool = Field(
        default=False, description="published: CB's entailment is COPA's token instead of CB's"
    )
    cut_last_characters: bool = Field(
        default=False, description="published: an answer's last character is not labelled, so one-letter answers never"
    )


class TextToTextConfig(FormatConfig):
    """How long sequences are, and the order of training."""

    max_length: int = Field(default=512, ge=8, description="tokens; a longer example becomes several windows")
    overlap: int = Field(default=256, ge=0, description="tokens that two windows share")
    shuffle: bool = Field(
        default=True, description="fine-tuning takes its rows in a random order; published: false, as they are listed"
    )

    @model_validator(mode="after")
    def _windows_advance(self) -> Self:
        if self.overlap >= self.max_length:
            raise ValueError(f"overlap {self.overlap} is not below max_length {self.max_length}; lower it")
        return self


@dataclass(frozen=True)
class Written:
    """An example as windows of one length.

    inputs   (windows, length) int64, padded on the right.
    targets  (windows, length) int64, PAD where nothing is asked: at padding, and everywhere without a label.
    types    (windows, length) int64 token types: 1 for the second text and the separator that closes it.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    types: NDArray[np.int64]


@dataclass(frozen=True)
class Format:
    """The tokens of one task: its own, and those of its labels by the label's id (empty: copied spans).

    tie_order  label ids in the order in which the first of equal scores wins.
    """

    task: int
    labels: tuple[int, ...]
    tie_order: tuple[int, ...]


def format_of(task: Task, config: FormatConfig) -> Format:
    """The tokens of a task. Raises `UserError` for one that has no text-to-text format."""
    if task.name not in _FORMATS:
        raise UserError(f"task '{task.name}' has no text-to-text format; those that have: {', '.join(_FORMATS)}")
    number, tokens = _FORMATS[task.name]
    own = task_token(number)
    if tokens is None:
        return Format(own, (), ())
    ids = {label: own if token == _YES else token for label, token in tokens.items()}
    if task.name == "cb" and config.cb_entailment_of_copa:
        ids["entailment"] = task_token(_FORMATS["copa_pair"][0])
    order = tuple(task.labels.index(label) for label in ids)
    return Format(own, tuple(ids[label] for label in task.labels), order)


class Writer:
    """Writes the examples of one task as sequences of a task tokenizer (`mlpt.data.task_tokenizer`)."""

    def __init__(self, task: Task, tokenizer: "PreTrainedTokenizerFast", config: TextToTextConfig):
        self.task, self.config = task, config
        self.format = format_of(task, config)
        if tokenizer.backend_tokenizer.token_to_id("[CLS0]") != TEXT_TOKEN:
            raise UserError("this tokenizer has no task tokens; prepare the text with tokenizer=task_bpe")
        self._tokenizer = _plain(tokenizer)

    def write(self, examples: Sequence[Example]) -> list[Written]:
        """Every example with all of its windows."""
        firsts = self._tokenizer.encode_batch([one.first for one in examples], add_special_tokens=False)
        seconds = self._tokenizer.encode_batch([one.second or "" for one in examples], add_special_tokens=False)
        rows = zip(examples, firsts, seconds, strict=True)
        return [self._write(example, first, second) for example, first, second in rows]

    def without_answer(self, written: Sequence[Written]) -> int:
        """How many labelled examples have nothing to copy in any window, and so only teach "nothing"; 0 of classes."""
        asked = [one.targets[one.targets != PAD] for one in written]
        return 0 if self.format.labels else sum(len(one) > 0 and bool((one == SEP).all()) for one in asked)

    def _write(self, example: Example, first: Encoding, second: Encoding) -> Written:
        windows = self._windows(len(first.ids), None if example.second is None else len(second.ids))
        answer = self._answer(example, second)
        built = [self._window(first.ids, second.ids, answer, *one) for one in windows]
        shape = len(built), max(len(inputs) for inputs, _, _ in built)
        arrays = [np.full(shape, fill, dtype=np.int64) for fill in (PAD, PAD, 0)]
        for row, parts in enumerate(built):
            for array, part in zip(arrays, parts, strict=True):
                array[row, : len(part)] = part
        inputs, targets, types = arrays
        if self.format.labels and example.label is not None:
            targets[inputs != PAD] = self.format.labels[example.class_id]
        return Written(inputs, targets, types)

    def _windows(self, first: int, second: int | None) -> list[tuple[slice, slice | None]]:
        """Which tokens of both texts each window has.

        "Longest first": the shorter text keeps what it has, up to half of the room. Where both are too long, windows
        run over the second text beside the beginning of the first.
        """
        if second is None:
            return [(part, None) for part in self._parts(first, self.config.max_length - 2)]
        room = self.config.max_length - 3
        if first + second <= room:
            return [(slice(0, first), slice(0, second))]
        if second <= room // 2:
            return [(part, slice(0, second)) for part in self._parts(first, room - second)]
        kept = slice(0, min(first, room // 2))
        return [(kept, part) for part in self._parts(second, room - kept.stop)]

    def _parts(self, length: int, size: int) -> list[slice]:
        """Stretches of `size` tokens that share `overlap` of them, or half where they are not longer than that."""
        step = size - self.config.overlap if self.config.overlap < size else (size + 1) // 2
        starts = range(0, max(1, length - size + step), step)
        return [slice(start, min(length, start + size)) for start in starts]

    def _window(
        self, first: list[int], second: list[int], answer: list[int], of_first: slice, of_second: slice | None
    ) -> tuple[list[int], list[int], list[int]]:
        """Ids, targets of a copied answer, and types of one window."""
        head = [self.format.task, *first[of_first], SEP]
        tail = [] if of_second is None else [*second[of_second], SEP]
        inputs = head + tail
        targets = [PAD] * len(inputs)
        if answer:
            copied = [] if of_second is None else [*answer[of_second], SEP]
            targets = [SEP] * len(head) + copied
        return inputs, targets, [0] * len(head) + [1] * len(tail)

    def _answer(self, example: Example, second: Encoding) -> list[int]:
        """Of a copied answer, the targets of all tokens of the second text; nothing without a label."""
        if self.format.labels or example.label is None:
            return []
        targets = [SEP] * len(second.ids)
        for start, end in example.spans:
            end -= self.config.cut_last_characters
            for place, (begin, stop) in enumerate(second.offsets):
                if begin < end and start < stop and start < end:
                    targets[place] = second.ids[place]
        return targets


def random_windows(written: Sequence[Written], generator: np.random.Generator) -> NDArray[np.int64]:
    """(examples,) the number of one window of each, uniform: what training takes."""
    return generator.integers([len(one.inputs) for one in written])


def stack_windows(
    written: Sequence[Written], chosen: Sequence[int] | NDArray[np.int64] | None = None
) -> tuple[Written, NDArray[np.int64]]:
    """Windows of several examples as the rows of one batch, padded to the longest; and the example of each row.

    chosen  one window of each example (training); None: all of them (evaluation).
    """
    picks = [range(len(one.inputs)) for one in written] if chosen is None else [[int(one)] for one in chosen]
    taken = [(one, list(pick)) for one, pick in zip(written, picks, strict=True)]
    length = max(int((one.inputs[pick] != PAD).sum(axis=1).max()) for one, pick in taken)
    fields = (
        np.concatenate([_fitted(getattr(one, name)[pick], length) for one, pick in taken])
        for name in ("inputs", "targets", "types")
    )
    return Written(*fields), np.repeat(np.arange(len(written)), [len(pick) for pick in picks])


def _fitted(rows: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Rows cut or padded to `length`; only padding is cut."""
    return np.pad(rows[:, :length], ((0, 0), (0, max(0, length - rows.shape[1]))))


def _plain(tokenizer: "PreTrainedTokenizerFast") -> Tokenizer:
    """The tokenizer's backend without padding and cutting; a special token written in a text is text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend
