"""Examples as token ids, tokenised once: ragged arrays that pickle cheaply and pad only when a batch is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mlpt.errors import UserError
from mlpt.settings import Settings
from mlpt.tasks import Example, Task

NO_LABEL = -100  # of a token that begins no word: what torch's cross entropy passes over
_CHUNK = 4096  # examples tokenised at once: bounds the memory of the tokenizer's Python lists


class SpanConfig(Settings):
    """How texts are cut and answers are read out for span tasks; the values are those of BERT's SQuAD script."""

    doc_stride: int = Field(
        128, gt=0, description="tokens between the starts of two windows of one context, at most (see `window_stride`)"
    )
    question_length: int = Field(64, gt=0, description="tokens; the rest of a longer question is dropped")
    answer_length: int = Field(30, gt=0, description="tokens of the longest answer")
    n_best: int = Field(20, gt=0, description="best starts and best ends that are paired")
    null_threshold: float = Field(
        0.0, description="v2: no answer where the null score exceeds the best span's by more than this"
    )


@dataclass
class Features:
    """Rows of token ids.

    tokens    (all tokens,) int32; row r is `tokens[offsets[r]:offsets[r + 1]]`.
    types     (all tokens,) uint8 token types, or None where the model has one type only.
    offsets   (rows + 1,) int64.
    labels    (rows,) int64 class ids or float32 scores; (rows, 2) int64 token positions of start and end for spans;
              (all tokens,) int64 for token classification: the class id of the word that begins there, else NO_LABEL;
              None where the examples are unlabelled.
    example   (rows,) int64: the example that a row comes from. Only spans have several rows an example.
    pad       id of the padding token.
    characters  spans: (all tokens, 2) int32, characters of the context that a token covers; (-1, -1) outside of it.
    stride      spans: tokens between the starts of two windows; the least, where it differs with the question.
    words       token classification: (all tokens,) int32, which word of its example begins at a token, else -1.
    """

    tokens: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray | None
    example: np.ndarray
    pad: int
    characters: np.ndarray | None = None
    stride: int | None = None
    words: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens a row."""
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """Model inputs of `rows`, padded to the longest of them, (rows, length) int64.

        There is no attention mask where nothing is padded: attention is then free to take its fastest path.
        """
        starts, lengths = self.offsets[rows], self.lengths[rows]
        longest = int(lengths.max())
        columns = np.arange(longest)
        real = columns < lengths[:, None]  # (rows, length)
        at = np.minimum(starts[:, None] + columns, len(self.tokens) - 1)
        inputs = {"input_ids": np.where(real, self.tokens[at], self.pad).astype(np.int64)}
        if self.types is not None:
            inputs["token_type_ids"] = np.where(real, self.types[at], 0).astype(np.int64)
        if not real.all():
            inputs["attention_mask"] = real.astype(np.int64)
        return {name: torch.from_numpy(value).to(device, non_blocking=True) for name, value in inputs.items()}

    def targets(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Labels of `rows`; of token classification (rows, length), padded as their tokens are."""
        if self.labels is None:
            raise ValueError("unlabelled rows have no targets")
        if self.words is not None:
            real = np.arange(int(self.lengths[rows].max())) < self.lengths[rows][:, None]  # (rows, length)
            padded = np.full(real.shape, NO_LABEL, dtype=np.int64)
            padded[real] = np.concatenate([self.labels[self.offsets[row] : self.offsets[row + 1]] for row in rows])
            return torch.from_numpy(padded).to(device, non_blocking=True)
        return torch.from_numpy(self.labels[rows]).to(device, non_blocking=True)

    def take(self, examples: np.ndarray) -> "Features":
        """The rows of some examples, which are counted anew from 0 in the order given."""
        place = {int(one): number for number, one in enumerate(examples)}
        rows = np.array([row for row, one in enumerate(self.example) if int(one) in place], dtype=np.int64)
        at = np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])
        labelled = at if self.words is not None else rows  # what `labels` has one of
        return Features(
            self.tokens[at],
            None if self.types is None else self.types[at],
            np.concatenate([[0], np.cumsum(self.lengths[rows])]),
            None if self.labels is None else self.labels[labelled],
            np.array([place[int(self.example[row])] for row in rows], dtype=np.int64),
            self.pad,
            None if self.characters is None else self.characters[at],
            self.stride,
            None if self.words is None else self.words[at],
        )

    @property
    def weights(self) -> np.ndarray:
        """(rows,) what each row weighs in a mean loss: the labels that it has."""
        if self.words is None or self.labels is None:
            return np.ones(len(self))
        return np.add.reduceat(self.labels != NO_LABEL, self.offsets[:-1]).astype(np.float64)

    @property
    def examples(self) -> int:
        """How many examples the rows come from."""
        return len(np.unique(self.example))


def make_features(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, types: bool, span: SpanConfig
) -> Features:
    """Tokenise `examples`, longest text first where a pair is too long; a span's context in overlapping windows.

    `types`: whether the model tells first and second text apart by token types.
    """
    if not examples:
        raise UserError(f"task '{task.name}' has a split without rows; check its file")
    builder = _Builder(types)
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        if task.kind == "span":
            _add_windows(builder, chunk, start, tokenizer, max_length, span)
        elif task.kind == "token_classification":
            _add_sentences(builder, chunk, start, tokenizer, max_length)
        else:
            _add_rows(builder, chunk, start, tokenizer, max_length)
    if task.kind == "span":
        return builder.features(np.array(builder.spans, dtype=np.int64), tokenizer.pad_token_id)
    labels = _word_labels(builder, examples) if task.kind == "token_classification" else _labels(task, examples)
    return builder.features(labels, tokenizer.pad_token_id)


class _Builder:
    """Grows the ragged arrays chunk by chunk."""

    def __init__(self, types: bool) -> None:
        self.wants_types = types
        self.tokens: list[np.ndarray] = []
        self.types: list[np.ndarray] = []
        self.characters: list[np.ndarray] = []
        self.lengths: list[int] = []
        self.example: list[int] = []
        self.spans: list[tuple[int, int]] = []
        self.strides: list[int] = []
        self.words: list[np.ndarray] = []

    def add(self, tokens: list[int], types: list[int], example: int) -> None:
        self.tokens.append(np.array(tokens, dtype=np.int32))
        self.types.append(np.array(types, dtype=np.uint8))
        self.lengths.append(len(tokens))
        self.example.append(example)

    def features(self, labels: np.ndarray | None, pad: int) -> Features:
        types = np.concatenate(self.types) if self.wants_types else None
        return Features(
            np.concatenate(self.tokens),
            types if types is not None and types.any() else None,
            np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64),
            labels,
            np.array(self.example, dtype=np.int64),
            pad,
            np.concatenate(self.characters) if self.characters else None,
            min(self.strides) if self.strides else None,
            np.concatenate(self.words) if self.words else None,
        )


def _labels(task: Task, examples: Sequence[Example]) -> np.ndarray | None:
    """The type follows from the task, never from the first label seen: a score of 3.8 must not become 3 (CA-1)."""
    if any(example.label is None for example in examples):
        return None
    return np.array([e.label for e in examples], dtype=np.float32 if task.kind == "regression" else np.int64)


def _add_rows(builder: _Builder, chunk: Sequence[Example], start: int, tokenizer: Any, max_length: int) -> None:
    pairs = chunk[0].second is not None
    encoded = tokenizer(
        [example.first for example in chunk],
        [example.second for example in chunk] if pairs else None,
        truncation="longest_first" if pairs else True,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    for number, (tokens, types) in enumerate(zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)):
        builder.add(tokens, types, start + number)


def _add_sentences(builder: _Builder, chunk: Sequence[Example], start: int, tokenizer: Any, max_length: int) -> None:
    """Sentences whose words are labelled; what is beyond `max_length` tokens is cut off."""
    encoded = tokenizer(
        [example.first for example in chunk],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    for number, example in enumerate(chunk):
        builder.add(encoded["input_ids"][number], encoded["token_type_ids"][number], start + number)
        text = np.array([one == 0 for one in encoded.sequence_ids(number)])
        builder.words.append(words_begun(np.array(encoded["offset_mapping"][number]), text, example.spans))


def words_begun(offsets: np.ndarray, text: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """(tokens,) int32: which word begins at a token, -1 where none does.

    A word begins at the first token that covers any of its characters and at which no word before it begins; a word
    without such a token begins nowhere.

    offsets  (tokens, 2) characters (start, exclusive end) of each token. text: (tokens,) False at special tokens.
    spans    the characters of each word, ascending.
    """
    begun = np.full(len(offsets), -1, dtype=np.int32)
    real = np.flatnonzero(text & (offsets[:, 1] > offsets[:, 0]))
    starts, ends = offsets[real, 0], offsets[real, 1]
    free = 0  # place in `real` of the first token that may begin a word
    for word, (start, end) in enumerate(spans):
        at = max(free, int(np.searchsorted(ends, start, side="right")))
        if at < len(real) and starts[at] < end:
            begun[real[at]] = word
            free = at + 1
    return begun


def _word_labels(builder: _Builder, examples: Sequence[Example]) -> np.ndarray | None:
    labels = []
    for example, words in zip(examples, builder.words, strict=True):
        if not isinstance(example.label, tuple):
            return None
        labels.append(np.where(words >= 0, np.array(example.label, dtype=np.int64)[words], NO_LABEL))
    return np.concatenate(labels)


def _add_windows(
    builder: _Builder, chunk: Sequence[Example], start: int, tokenizer: Any, max_length: int, span: SpanConfig
) -> None:
    """Windows of `max_length` tokens whose starts in the context are `window_stride` tokens apart.

    The room beside a question depends on its length; equal ones go together.
    """
    questions = _shortened([example.first for example in chunk], tokenizer, span.question_length)
    alone = tokenizer(questions, [""] * len(questions), return_attention_mask=False)["input_ids"]
    groups: dict[int, list[int]] = {}
    for number, tokens in enumerate(alone):
        groups.setdefault(max_length - len(tokens), []).append(number)
    for room, numbers in groups.items():
        if room < 8:
            raise UserError(
                f"{max_length} tokens leave no room for the text beside a question of up to {span.question_length}; "
                "raise max_length (conditional.max_length of multi-task training), or lower span.question_length"
            )
        stride = window_stride(room, span)
        builder.strides.append(stride)
        encoded = tokenizer(
            [questions[number] for number in numbers],
            [chunk[number].second for number in numbers],
            truncation="only_second",
            max_length=max_length,
            stride=room - stride,  # the tokenizer's is the overlap
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        for window, source in enumerate(encoded["overflow_to_sample_mapping"]):
            inside = np.array([one == 1 for one in encoded.sequence_ids(window)])
            characters = np.where(inside[:, None], np.array(encoded["offset_mapping"][window]), -1).astype(np.int32)
            number = numbers[source]
            builder.add(encoded["input_ids"][window], encoded["token_type_ids"][window], start + number)
            builder.characters.append(characters)
            builder.spans.append(_token_span(chunk[number], characters))


def window_stride(room: int, span: SpanConfig) -> int:
    """Tokens between the starts of two windows that hold `room` tokens of a context each.

    `span.doc_stride`, or less: windows overlap by the longest answer's tokens, so that one which is cut by a window's
    end is whole in the next, or by half of the room if that is less.
    """
    return min(span.doc_stride, max((room + 1) // 2, room - span.answer_length))


def lost_answers(features: Features, examples: Sequence[Example]) -> tuple[int, int]:
    """(answers that lie whole in no window of `features`, all answers) of a span task's `examples`."""
    assert features.labels is not None
    found = set(features.example[features.labels.any(axis=1)].tolist())
    answered = [number for number, example in enumerate(examples) if example.answer_start >= 0]
    return sum(number not in found for number in answered), len(answered)


def _shortened(questions: list[str], tokenizer: Any, tokens: int) -> list[str]:
    """Questions without the tokens beyond the first `tokens`."""
    encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        question if len(offsets) <= tokens else question[: offsets[tokens - 1][1]]
        for question, offsets in zip(questions, encoded, strict=True)
    ]


def _token_span(example: Example, characters: np.ndarray) -> tuple[int, int]:
    """First and last token of the answer in a window; (0, 0), the [CLS] position, where it isn't all inside."""
    if example.answer_start < 0:
        return 0, 0
    first, last = example.answer_start, example.answer_start + len(example.answers[0])
    covering = np.flatnonzero((characters[:, 1] > first) & (characters[:, 0] < last) & (characters[:, 0] >= 0))
    if not len(covering):
        return 0, 0
    start, end = int(covering[0]), int(covering[-1])
    # An answer that is cut by the window's edge isn't in this window.
    whole = characters[start, 0] <= first and characters[end, 1] >= last
    return (start, end) if whole else (0, 0)
