"""Cloze probing: at which rank a model puts the word that belongs in a blank (LAMA, Petroni et al., 2019)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from mlpt.downstream.intervals import mean_of_means, mean_of_shares
from mlpt.downstream.subject import Subject
from mlpt.downstream.suite import Line, Progress, Result, Suite, SuiteConfig
from mlpt.errors import UserError
from mlpt.objectives.base import Inputs
from mlpt.tasks.batching import passes
from mlpt.tasks.cloze import BLANK, ClozeQuestion, read_cloze, read_words

_ROWS_A_PASS = 512  # bounds the head's output: rows x vocabulary float32


class ClozeConfig(SuiteConfig):
    """Which questions are asked, and which words may answer them."""

    templates: str | None = Field(None, description="LAMA's relations.jsonl, for rows of subject and object alone")
    vocabulary: str | None = Field(None, description="file of candidate words, one a line; default: all tokens")
    filtered: bool = Field(True, description="other right answers to the same text are no rivals, as in LAMA")
    too_long: Literal["refuse", "leave_out"] = Field("refuse", description="texts beyond the model's length")
    max_malformed_share: float = Field(0.0, ge=0, le=1, description="of a file's rows; more is an error")


class Cloze(Suite):
    """Precision at 1 and 10 and mean reciprocal rank, by relation and overall: the mean over relations, as in LAMA."""

    Config = ClozeConfig

    def read(self) -> None:
        source = self.data('a .jsonl file of {"text": "... [MASK] ...", "answer": ...}, or LAMA\'s files')
        self.questions = read_cloze(source, self.config.templates, self.config.max_malformed_share)
        self.words = None if self.config.vocabulary is None else read_words(self.config.vocabulary)

    def measure(self, subject: Subject, progress: Progress) -> Result:
        rivals = {after_space: _rivals(subject, self.words, after_space) for after_space in (False, True)}
        asked, notes = _ask(subject, self.questions, rivals, self.config.too_long == "leave_out")
        if not asked:
            raise UserError(f"no question can be asked of {subject.name}: {'; '.join(notes)}")
        ranks = _ranks(subject, asked, rivals, self.config, progress)
        return Result(_lines([one.question for one in asked], ranks), notes)


@dataclass(frozen=True)
class _Asked:
    """A question as token ids (length,); `answer` is the id that belongs at `position`, after a space or not."""

    question: ClozeQuestion
    ids: np.ndarray
    position: int
    answer: int
    after_space: bool


def _ask(
    subject: Subject, questions: Sequence[ClozeQuestion], rivals: Mapping[bool, torch.Tensor], leave_out: bool
) -> tuple[list[_Asked], list[str]]:
    """The questions that this tokenizer can be asked, and notes about the others."""
    asked = []
    left_out = {"their answers are not one token": 0, "their answers are not in the given vocabulary": 0, "too long": 0}
    allowed = {after_space: candidates.cpu() for after_space, candidates in rivals.items()}
    for question in questions:
        after_space = question.text.partition(BLANK)[0][-1:].isspace()
        answer = _token_of(subject, question.answer, after_space)
        if answer is None:
            left_out["their answers are not one token"] += 1
            continue
        if not allowed[after_space][answer]:
            left_out["their answers are not in the given vocabulary"] += 1
            continue
        text = question.text.replace(BLANK, subject.tokenizer.mask_token)
        ids = np.array(subject.tokenizer(text)["input_ids"], dtype=np.int64)
        if subject.room is not None and len(ids) > subject.room:
            if not leave_out:
                raise UserError(
                    f"a text has {len(ids)} tokens and the model takes {subject.room} ('{text[:40]}...'); "
                    "set too_long=leave_out to go on without such questions"
                )
            left_out["too long"] += 1
            continue
        position = int(np.flatnonzero(ids == subject.vocabulary.mask)[0])
        asked.append(_Asked(question, ids, position, answer, after_space))
    notes = [f"{count} of {len(questions)} questions left out: {why}" for why, count in left_out.items() if count]
    return asked, notes


def _token_of(subject: Subject, word: str, after_space: bool) -> int | None:
    """The one token that `word` is in its place; None where it is several, or unknown to the vocabulary.

    A byte-level vocabulary has other tokens for a word after a space than for one without.
    """
    ids = subject.tokenizer((" " if after_space else "") + word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] in subject.vocabulary.special_ids:
        return None
    return int(ids[0])


@torch.inference_mode()
def _ranks(
    subject: Subject,
    asked: Sequence[_Asked],
    rivals: Mapping[bool, torch.Tensor],
    config: ClozeConfig,
    progress: Progress,
) -> np.ndarray:
    """(questions,) int64: 1 + how many rivals score at least as high as the answer; ties count against the model."""
    right: dict[str, set[int]] = {}
    for one in asked:
        right.setdefault(one.question.text, set()).add(one.answer)
    lengths = np.array([len(one.ids) for one in asked])
    ranks = np.empty(len(asked), dtype=np.int64)
    done = 0
    for rows in passes(np.arange(len(asked)), lengths, config.tokens_per_batch, _ROWS_A_PASS):
        logits = _logits(subject, [asked[row] for row in rows], config)  # (rows, vocabulary)
        for logit, row in zip(logits, rows, strict=True):
            one = asked[row]
            ahead = (logit >= logit[one.answer]) & rivals[one.after_space]
            excluded = right[one.question.text] if config.filtered else {one.answer}
            ahead[list(excluded)] = False
            ranks[row] = 1 + int(ahead.sum())
        done += len(rows)
        progress(done, len(asked))
    return ranks


def _logits(subject: Subject, asked: Sequence[_Asked], config: ClozeConfig) -> torch.Tensor:
    """(questions, vocabulary) float32 on the device: the head's output at each blank."""
    longest = max(len(one.ids) for one in asked)
    ids = np.full((len(asked), longest), subject.vocabulary.pad, dtype=np.int64)
    real = np.zeros((len(asked), longest), dtype=bool)
    for row, one in enumerate(asked):
        ids[row, : len(one.ids)] = one.ids
        real[row, : len(one.ids)] = True
    mask = None if real.all() else torch.from_numpy(real)
    inputs = Inputs(torch.from_numpy(ids), mask, torch.tensor([one.position for one in asked])).to(subject.device)
    with subject.autocast(config.precision):
        hidden = subject.encoder.hidden(inputs)  # (questions, length, hidden)
        return subject.encoder.token_logits(hidden[torch.arange(len(asked)), inputs.positions]).float()


def _rivals(subject: Subject, words: Sequence[str] | None, after_space: bool) -> torch.Tensor:
    """(head's output,) bool: tokens that may answer: all but the special ones, or those of the given words."""
    allowed = torch.zeros(subject.encoder.config.vocab_size, dtype=torch.bool)
    if words is None:
        allowed[: subject.vocabulary.size] = True
        allowed[list(subject.vocabulary.special_ids)] = False
    else:
        tokens = (_token_of(subject, word, after_space) for word in words)
        allowed[[token for token in tokens if token is not None]] = True
    return allowed.to(subject.device)


def _lines(questions: Sequence[ClozeQuestion], ranks: np.ndarray) -> list[Line]:
    groups: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(question.relation, []).append(number)
    of_relation = {relation: ranks[numbers] for relation, numbers in sorted(groups.items())}
    lines = _scores("overall", "overall", list(of_relation.values()))
    for relation, own in of_relation.items():
        if relation:
            lines += _scores("relation", relation, [own])
    return lines


def _scores(level: str, name: str, groups: Sequence[np.ndarray]) -> list[Line]:
    count = sum(len(group) for group in groups)
    at = {f"precision@{k}": mean_of_shares([group <= k for group in groups]) for k in (1, 10)}
    at["reciprocal_rank"] = mean_of_means([1 / group for group in groups])
    return [Line.of(level, name, metric, estimate, count) for metric, estimate in at.items()]
