"""Minimal pairs (BLiMP, Zorro, one's own): how often the acceptable sentence has the higher pseudo-log-likelihood."""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field

from mlpt.downstream.intervals import mean_of_shares
from mlpt.downstream.pseudo_likelihood import Masking, TooLong, score_sentences
from mlpt.downstream.subject import Subject
from mlpt.downstream.suite import Line, Progress, Result, Suite, SuiteConfig
from mlpt.tasks.minimal_pairs import MinimalPair, read_pairs

_LEVELS: dict[str, Callable[[MinimalPair], str]] = {
    "field": lambda pair: pair.field,
    "phenomenon": lambda pair: pair.phenomenon,
    "paradigm": lambda pair: pair.paradigm,
}


class MinimalPairsConfig(SuiteConfig):
    """How sentences are scored."""

    masking: Masking = Field("within_word", description="also mask the rest of a token's word; or plain")
    too_long: TooLong = Field("refuse", description="sentences beyond the model's length; or truncate")


class MinimalPairs(Suite):
    """Accuracy by paradigm, phenomenon and field, and overall as published: the mean over paradigms."""

    Config = MinimalPairsConfig
    details = frozenset({"paradigm"})

    def read(self) -> None:
        self.pairs = read_pairs(
            self.data("a .jsonl or .jsonl.gz file, a folder of the original files, or hub:nyu-mll/blimp")
        )

    def measure(self, subject: Subject, progress: Progress) -> Result:
        sentences = [sentence for pair in self.pairs for sentence in (pair.good, pair.bad)]
        scores = score_sentences(
            subject,
            sentences,
            self.config.masking,
            self.config.too_long,
            self.config.tokens_per_batch,
            self.config.precision,
            progress,
        )
        good, bad = scores.values[0::2], scores.values[1::2]
        notes = []
        if ties := int((good == bad).sum()):
            notes.append(f"{ties} of {len(self.pairs)} pairs are ties, which count as wrong")
        if scores.truncated:
            notes.append(f"{scores.truncated} sentences were cut to the model's {subject.room} tokens")
        if scores.unknown:
            notes.append(f"{scores.unknown} tokens that the vocabulary doesn't have were not scored")
        return Result(accuracies(self.pairs, good > bad), notes)


def accuracies(pairs: Sequence[MinimalPair], right: np.ndarray) -> list[Line]:
    """Lines of `right` (pairs,) bool: overall first, then each level that the pairs tell.

    Every level above the paradigms is the mean over its paradigms.
    """
    lines = [_line("overall", "overall", [pair.paradigm for pair in pairs], right)]
    for level, name_of in _LEVELS.items():
        groups: dict[str, list[int]] = {}
        for number, pair in enumerate(pairs):
            groups.setdefault(name_of(pair), []).append(number)
        for name, numbers in sorted(groups.items()):
            if name:
                lines.append(_line(level, name, [pairs[number].paradigm for number in numbers], right[numbers]))
    return lines


def _line(level: str, name: str, paradigms: Sequence[str], right: np.ndarray) -> Line:
    of_paradigm: dict[str, list[bool]] = {}
    for paradigm, one in zip(paradigms, right.tolist(), strict=True):
        of_paradigm.setdefault(paradigm, []).append(one)
    estimate = mean_of_shares([np.array(group) for group in of_paradigm.values()])
    return Line.of(level, name, "accuracy", estimate, len(right), 0.5)
