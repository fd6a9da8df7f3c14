"""Suites that probe frozen states with linear models: labelled tasks, the domain of a block, labels of words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from mlpt.data.blocks import Blocks
from mlpt.downstream.evaluate import majority, predict, score
from mlpt.downstream.linear_probe import Halves, Labelled, ProbeConfig, draw_halves, fit_outputs, repeat_lines
from mlpt.downstream.states import text_states, word_states
from mlpt.downstream.subject import Subject
from mlpt.downstream.suite import Line, Progress, Result, Suite
from mlpt.errors import UserError
from mlpt.randomness import numpy_generator
from mlpt.tasks import Example, TaskSource, load_task, read_task_file
from mlpt.tasks.features import Features, SpanConfig, make_features
from mlpt.tasks.metrics import score_ids
from mlpt.tasks.token_labels import Column, LabelledSentence, read_token_labels

_METRICS = ("accuracy", "macro_f1")  # of domains and of words' labels


class TaskProbeConfig(ProbeConfig):
    """Which labelled task."""

    task: str | None = Field(None, description="its name, which can also stand in place of the suite's")


class TaskProbe(Suite):
    """A labelled task (GLUE, SuperGLUE, `docs_*`, one's own) from states of its texts, by the task's own metrics."""

    Config = TaskProbeConfig
    needs_head = False

    def read(self) -> None:
        data, name = self.config.data, self.config.task
        own = read_task_file(data) if data is not None and data.endswith((".yaml", ".yml")) else ()
        if name is None and len(own) != 1:
            there = f" ({', '.join(task.name for task in own)})" if own else ""
            raise UserError(
                f"it needs one task{there}: give its name as the suite, or task=FILE.yaml that describes one"
            )
        name = name or own[0].name
        self.rows = load_task(name, TaskSource(data_dir=None if own else data, own=own))
        if self.rows.task.kind == "span":
            raise UserError(f"'{name}' asks for a stretch of text, and one vector a text can't say where; fine-tune it")
        if self.rows.task.kind == "token_classification":
            raise UserError(
                f"'{name}' labels words, and this probes whole texts; take the suite pos=FILE, or fine-tune it"
            )
        for split in ("train", *(self.rows.dev_splits or ("dev",))):
            rows = self.rows.splits.get(split)
            if not rows or any(example.label is None for example in rows):
                raise UserError(f"task '{name}' needs labelled rows in its split '{split}'; give their file")

    def measure(self, subject: Subject, progress: Progress) -> Result:
        train = self.rows.splits["train"]
        drawn = {
            split: draw_halves(_questions(train), _questions(self.rows.splits[split]), self.config)
            for split in self.rows.dev_splits
        }
        wanted = {split: _union([halves.scored for halves in every]) for split, every in drawn.items()}
        wanted["train"] = _union([halves.train for every in drawn.values() for halves in every])
        whole = _Whole(progress, sum(len(rows) for rows in wanted.values()))
        states = {split: self._states(subject, split, rows, whole) for split, rows in wanted.items()}
        lines = []
        for split, every in drawn.items():
            lines += self._lines(split, every, states["train"], states[split])
        return Result(lines, self.rows.warnings())

    def _states(self, subject: Subject, split: str, rows: np.ndarray, whole: "_Whole") -> "_States":
        task = self.rows.task
        types = getattr(subject.encoder.config, "type_vocab_size", 1) > 1
        length = min(task.max_length, subject.room or task.max_length)
        chosen = [self.rows.splits[split][row] for row in rows]
        features = make_features(task, chosen, subject.tokenizer, length, types, SpanConfig())
        return _States(rows, _text_states(subject, features, self.config, whole.part(len(rows))))

    def _lines(self, split: str, drawn: Sequence[Halves], train: "_States", held_out: "_States") -> list[Line]:
        task, rows = self.rows.task, self.rows.splits["train"]
        labels, units = np.array([example.label for example in rows]), _questions(rows)
        scores, baselines = [], []
        for repeat, halves in enumerate(drawn):
            outputs = fit_outputs(
                "number" if task.kind == "regression" else "classes",
                Labelled(train.of(halves.train), labels[halves.train], units[halves.train]),
                held_out.of(halves.scored),
                task.outputs,
                self.config.penalties,
                self.config.seed + repeat,
            )
            scored = [self.rows.splits[split][row] for row in halves.scored]
            scores.append(score(task, scored, predict(task, scored, _NO_FEATURES, outputs, SpanConfig()).values))
            baselines.append(majority(task, [rows[row] for row in halves.train], scored))
        return repeat_lines(split, scores, baselines)


class DomainProbeConfig(ProbeConfig):
    """Which prepared blocks."""

    split: Literal["train", "dev", "test"] = "dev"


class DomainProbe(Suite):
    """Which domain a prepared block comes from; blocks that begin with parts of one document stay on one side."""

    Config = DomainProbeConfig
    needs_head = False

    def read(self) -> None:
        self.blocks = Blocks.open(self.data("a folder of prepared blocks of several domains"), self.config.split)
        most = 2 * self.config.rows * self.config.repeats
        every = numpy_generator(self.config.seed, "probe/blocks").permutation(len(self.blocks))
        self.rows = np.sort(every[:most])
        self.labels = self.blocks.domain_of(self.rows)
        of_one = self.labels >= 0
        self.rows, self.labels = self.rows[of_one], self.labels[of_one]
        if len(np.unique(self.labels)) < 2:
            raise UserError(
                f"the {self.config.split} split of {self.config.data} has one domain; prepare several sources"
            )

    def measure(self, subject: Subject, progress: Progress) -> Result:
        self.blocks.require_tokenizer(subject.tokenizer)
        if subject.room is not None and self.blocks.block_size > subject.room:
            raise UserError(f"blocks have {self.blocks.block_size} tokens and {subject.name} takes {subject.room}")
        documents = self.blocks.documents_of(self.rows) * len(self.blocks.domains) + self.labels
        drawn = draw_halves(documents, None, self.config)
        wanted = _union([rows for halves in drawn for rows in (halves.train, halves.scored)])
        states = _States(wanted, _text_states(subject, self._features(wanted), self.config, progress))
        return Result(_class_lines("domain", drawn, states, self.labels, documents, self.config))

    def _features(self, wanted: np.ndarray) -> Features:
        """The blocks as rows of tokens; padding, which some have at their ends, left out."""
        tokens = self.blocks.tokens(self.rows[wanted]).numpy().astype(np.int32)
        real = tokens != self.blocks.vocabulary.pad
        offsets = np.concatenate([[0], np.cumsum(real.sum(1))]).astype(np.int64)
        return Features(tokens[real], None, offsets, None, np.arange(len(wanted)), self.blocks.vocabulary.pad)


class WordProbeConfig(ProbeConfig):
    """Which labels."""

    column: Column = Field("upos", description="of a CoNLL-U file: upos, xpos or deprel")


class WordProbe(Suite):
    """Labels of words (parts of speech) from the mean state of each word's tokens; a sentence stays on one side."""

    Config = WordProbeConfig
    needs_head = False

    def read(self) -> None:
        expected = "a .conllu file, a treebank's folder, or a file of one word and its label a line"
        read = read_token_labels(self.data(expected), self.config.column)
        self.sentences = [*read.train, *(read.held_out or [])]
        names = sorted({label for sentence in self.sentences for label in sentence.labels})
        ids = {name: number for number, name in enumerate(names)}
        self.labels = np.array([ids[label] for sentence in self.sentences for label in sentence.labels])
        self.sentence_of = np.repeat(np.arange(len(self.sentences)), [len(one.labels) for one in self.sentences])
        words = sum(len(sentence.labels) for sentence in read.train)
        self.held_out_from = None if read.held_out is None else words
        if len(names) < 2:
            raise UserError(f"{self.config.data} has one label only; give words with several")

    def measure(self, subject: Subject, progress: Progress) -> Result:
        drawn = self._draw()
        wanted = _union([rows for halves in drawn for rows in (halves.train, halves.scored)])
        numbers = np.unique(self.sentence_of[wanted])
        words = np.flatnonzero(np.isin(self.sentence_of, numbers))
        values, found = self._states(subject, [self.sentences[number] for number in numbers], progress)
        states = _States(words, values)
        kept = [Halves(*(rows[found[states.places(rows)]] for rows in (one.train, one.scored))) for one in drawn]
        lost = int((~found[states.places(wanted)]).sum())
        if not all(len(rows) for one in kept for rows in (one.train, one.scored)):
            raise UserError(f"{subject.name} can read none of the words in {self.config.data}; give shorter sentences")
        notes = [f"{lost} of {len(wanted)} words left out: cut off, or unreadable to the tokenizer"] if lost else []
        return Result(_class_lines(self.config.column, kept, states, self.labels, self.sentence_of, self.config), notes)

    def _draw(self) -> list[Halves]:
        start = self.held_out_from
        if start is None:
            return draw_halves(self.sentence_of, None, self.config)
        drawn = draw_halves(self.sentence_of[:start], self.sentence_of[start:], self.config)
        return [Halves(halves.train, halves.scored + start) for halves in drawn]

    def _states(
        self, subject: Subject, sentences: Sequence[LabelledSentence], progress: Progress
    ) -> tuple[np.ndarray, np.ndarray]:
        texts, spans = [sentence.text for sentence in sentences], [sentence.spans for sentence in sentences]
        config = self.config
        return word_states(subject, texts, spans, config.layer, config.tokens_per_batch, config.precision, progress)


@dataclass(frozen=True)
class _States:
    """States of some rows: `values[i]` is that of row `rows[i]`; `rows` ascend."""

    rows: np.ndarray
    values: np.ndarray

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where `rows` stand in `values`."""
        return np.searchsorted(self.rows, rows)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), hidden)."""
        return self.values[self.places(rows)]


class _Whole:
    """One progress over several parts."""

    def __init__(self, progress: Progress, total: int):
        self._progress, self._total, self._begun = progress, total, 0

    def part(self, size: int) -> Callable[[int, int], None]:
        """The progress of the next part, which has `size` of the total."""
        before = self._begun
        self._begun += size
        return lambda done, _: self._progress(before + done, self._total)


# `predict` reads features of spans alone, which no probe answers.
_NO_FEATURES = Features(np.empty(0, np.int32), None, np.zeros(1, np.int64), None, np.empty(0, np.int64), 0)


def _text_states(subject: Subject, features: Features, config: ProbeConfig, progress: Progress) -> np.ndarray:
    return text_states(
        subject, features, config.pooling, config.layer, config.tokens_per_batch, config.precision, progress
    )


def _class_lines(
    name: str, drawn: Sequence[Halves], states: _States, labels: np.ndarray, units: np.ndarray, config: ProbeConfig
) -> list[Line]:
    """Lines of class ids `labels` (rows,), predicted from `states`."""
    classes = int(labels.max()) + 1
    scores, baselines = [], []
    for repeat, halves in enumerate(drawn):
        own = labels[halves.train]
        outputs = fit_outputs(
            "classes",
            Labelled(states.of(halves.train), own, units[halves.train]),
            states.of(halves.scored),
            classes,
            config.penalties,
            config.seed + repeat,
        )
        scores.append(score_ids(_METRICS, labels[halves.scored], outputs.argmax(axis=1)))
        commonest = np.full(len(halves.scored), np.bincount(own).argmax())
        baselines.append(score_ids(_METRICS, labels[halves.scored], commonest))
    return repeat_lines(name, scores, baselines)


def _union(rows: Sequence[np.ndarray]) -> np.ndarray:
    """All row numbers that occur, ascending, each once."""
    return np.unique(np.concatenate(rows))


def _questions(examples: Sequence[Example]) -> np.ndarray:
    """(examples,) the question of each row: rows that answer one question have one number, others their own."""
    numbers: dict[tuple[int, ...], int] = {}
    return np.array(
        [numbers.setdefault(one.group or (-1, number), len(numbers)) for number, one in enumerate(examples)]
    )
