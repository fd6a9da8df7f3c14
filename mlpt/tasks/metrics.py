"""Scores of labelled tasks by their official definitions, from libraries; fractions, higher is better.

Where a definition has no value it is 0, never NaN: the correlations and Matthews' coefficient of constant predictions
or labels (nothing was told apart), F1 without a positive prediction or label, and every metric of no rows at all.
Predictions that are not finite (a diverged regression) count as 0.
"""

import statistics
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from mlpt.tasks.entities import entities
from mlpt.tasks.text_metrics import best_exact_match, best_f1


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Share of equal ids."""
    return float(accuracy_score(labels, predicted)) if len(labels) else 0.0


def f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of class 1 (GLUE's MRPC and QQP)."""
    return float(f1_score(labels, predicted, pos_label=1, zero_division=0)) if len(labels) else 0.0


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean of the classes' F1, over the classes that occur among labels or predictions (CB)."""
    return float(f1_score(labels, predicted, average="macro", zero_division=0)) if len(labels) else 0.0


def matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews' correlation coefficient, -1 to 1 (CoLA)."""
    return float(matthews_corrcoef(labels, predicted)) if len(labels) else 0.0


def pearson(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's correlation, -1 to 1."""
    return _correlation(*_finite(labels, predicted))


def spearman(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman's rank correlation, -1 to 1, ties by their mean rank."""
    return _correlation(*(stats.rankdata(one) for one in _finite(labels, predicted)))


def _finite(labels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, predicted = np.asarray(labels, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    return labels, np.where(np.isfinite(predicted), predicted, 0.0)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """By the standard library's exact sums: those of numpy and scipy depend on where arrays lie in memory."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    try:
        value = statistics.correlation(*((one / np.abs(one).max()).tolist() for one in (first, second)))
    except statistics.StatisticsError:  # all but constant
        return 0.0
    return min(1.0, max(-1.0, value))


def exact_match_of_groups(labels: np.ndarray, predicted: np.ndarray, groups: Sequence[Hashable]) -> float:
    """Share of questions whose rows are all right (MultiRC's EM)."""
    right: dict[Hashable, bool] = {}
    for group, label, guess in zip(groups, labels, predicted, strict=True):
        right[group] = right.get(group, True) and bool(label == guess)
    return float(np.mean(list(right.values()))) if right else 0.0


_OF_IDS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "accuracy_and_f1": lambda labels, predicted: (accuracy(labels, predicted) + f1(labels, predicted)) / 2,
    "f1a": f1,
}
_OF_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": pearson,
    "spearman": spearman,
    "pearson_and_spearman": lambda labels, predicted: (pearson(labels, predicted) + spearman(labels, predicted)) / 2,
}
_OF_ENTITIES = ("entity_f1", "entity_precision", "entity_recall")
_OF_TEXTS = {"f1": best_f1, "exact_match": best_exact_match}
_KNOWN = {
    "classification": {*_OF_IDS} - {"f1a"},
    "regression": {*_OF_SCORES},
    "span": {*_OF_TEXTS},
    "multiple_rows": {"accuracy", "f1a", "f1", "exact_match"},
    "token_classification": {"accuracy", "macro_f1", *_OF_ENTITIES},
}


def known_metrics(kind: str) -> list[str]:
    """Names of the metrics that a kind of task can have."""
    return sorted(_KNOWN[kind])


def score_ids(metrics: Sequence[str], labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Metrics of class ids, both (rows,)."""
    return {name: _OF_IDS[name](labels, predicted) for name in metrics}


def score_numbers(metrics: Sequence[str], labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Metrics of a regression, both (rows,)."""
    return {name: _OF_SCORES[name](labels, predicted) for name in metrics}


def score_texts(metrics: Sequence[str], golds: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """Normalised F1 and exact match of texts, the best over each question's gold answers (SQuAD, ReCoRD)."""
    return {
        name: float(
            np.mean([_OF_TEXTS[name](gold, text) for gold, text in zip(golds, predicted, strict=True)] or [0.0])
        )
        for name in metrics
    }


def score_words(
    metrics: Sequence[str], names: Sequence[str], labels: Sequence[Any], predicted: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Metrics of labelled words: over all words, or over entities.

    names              the labels by id. labels, predicted: sentence by sentence the class id of each word; a negative
                       prediction is that of a word which the model did not see: no label, and O in an entity's scheme.
    accuracy           share of words; macro_f1: over the labels that occur, as `macro_f1`.
    entity_precision, entity_recall, entity_f1   of entities as `mlpt.tasks.entities` reads them, over all sentences
                       together: right are those with both ends and the type of a gold one (CoNLL).
    """
    scores: dict[str, float] = {}
    if any(name in _OF_ENTITIES for name in metrics):
        scores = entity_scores(
            [[names[one] for one in sentence] for sentence in labels],
            [[names[one] if one >= 0 else "O" for one in sentence] for sentence in predicted],
        )
    gold, guess = (np.array([one for row in part for one in row], dtype=np.int64) for part in (labels, predicted))
    if "macro_f1" in metrics:
        known = [one for one in np.union1d(gold, guess) if one >= 0]  # a word that was not seen is no class
        scores["macro_f1"] = float(f1_score(gold, guess, labels=known, average="macro", zero_division=0))
    return {name: scores[name] if name in scores else _OF_IDS[name](gold, guess) for name in metrics}


def entity_scores(labels: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """CoNLL's precision, recall and F1 of entities over sentences; 0 where there is no entity to divide by."""
    right = said = wanted = 0
    for gold, guess in zip(labels, predicted, strict=True):
        golds, guesses = entities(gold), entities(guess)
        right, said, wanted = right + len(golds & guesses), said + len(guesses), wanted + len(golds)
    precision, recall = right / max(1, said), right / max(1, wanted)
    return {
        "entity_precision": precision,
        "entity_recall": recall,
        "entity_f1": 2 * right / max(1, said + wanted),
    }


def score_rows(
    metrics: Sequence[str], labels: np.ndarray, predicted: np.ndarray, groups: Sequence[Hashable]
) -> dict[str, float]:
    """Metrics of rows decided one by one: F1 over all of them, exact match a question (MultiRC)."""
    return {
        name: exact_match_of_groups(labels, predicted, groups)
        if name == "exact_match"
        else _OF_IDS[name](labels, predicted)
        for name in metrics
    }
