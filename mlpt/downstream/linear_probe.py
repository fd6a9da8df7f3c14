"""Linear probes of frozen states: logistic or ridge regression, repeated on random halves of the rows.

Each repeat trains on a random half of the training rows and scores a random half of the held-out rows (or, where there
are none, the other half), so that the spread over repeats estimates how far the score on all rows may be off: both the
training rows and the scored rows are a sample (half-sample replication, McCarthy, 1969).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from mlpt.downstream.intervals import of_repeats
from mlpt.downstream.states import Pooling
from mlpt.downstream.suite import Line, SuiteConfig
from mlpt.errors import UserError
from mlpt.randomness import numpy_generator

Kind = Literal["classes", "number"]
_SHARE_FOR_PICKING = 0.2  # of the training rows: the penalty is picked on them
_ITERATIONS = 1000  # of L-BFGS at most


class ProbeConfig(SuiteConfig):
    """Which states are probed, and how often."""

    layer: int | None = Field(None, description="0: embeddings, 1, 2, ..., -1: last; default: what the head sees")
    pooling: Pooling = Field("mean", description="of a text's tokens; or first: the first token's state")
    penalties: tuple[float, ...] = Field((1, 10, 100, 1000, 10000), min_length=1, description="of squared weights")
    repeats: int = Field(8, ge=2, description="random halves of the rows")
    rows: int = Field(5000, gt=1, description="of a half at most (words, where words are labelled)")
    seed: int = Field(42, description="of the halves; equal seeds give every model the same rows")


@dataclass(frozen=True)
class Halves:
    """Row numbers that one repeat trains on and scores."""

    train: np.ndarray
    scored: np.ndarray


@dataclass(frozen=True)
class Labelled:
    """Rows to learn from: (n, hidden) float32 states, (n,) class ids or numbers, (n,) the unit of each row."""

    states: np.ndarray
    labels: np.ndarray
    units: np.ndarray


def draw_halves(units: np.ndarray, held_out: np.ndarray | None, config: ProbeConfig) -> list[Halves]:
    """The rows of each repeat. Rows of one unit (a document, a question, a sentence) stay together.

    units, held_out  (rows,) the unit of each row; `held_out` None: the rows are their own held-out rows.
    Raises `UserError` where a half would be empty.
    """
    drawn = []
    for repeat in range(config.repeats):
        generator = numpy_generator(config.seed, "probe/halves", repeat)
        train, rest = _halve(units, generator)
        scored = rest if held_out is None else _halve(held_out, generator)[0]
        if not (len(train) and len(scored)):
            raise UserError("there are too few rows for two halves; give more")
        of_scored = units if held_out is None else held_out
        drawn.append(Halves(_at_most(train, units, config.rows), _at_most(scored, of_scored, config.rows)))
    return drawn


def _halve(units: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a random half of the units, and the other rows; the units' random order is kept."""
    different = generator.permutation(np.unique(units))
    rank = dict(zip(different.tolist(), range(len(different)), strict=True))
    place = np.array([rank[unit] for unit in units.tolist()])
    order = np.argsort(place, kind="stable")
    cut = int(np.searchsorted(place[order], (len(different) + 1) // 2))
    return order[:cut], order[cut:]


def _at_most(rows: np.ndarray, units: np.ndarray, most: int) -> np.ndarray:
    """The first whole units of `rows` that have no more than `most` rows together, ascending; at least one unit."""
    ends = np.flatnonzero(np.diff(units[rows])) + 1
    ends = np.append(ends, len(rows))
    fitting = ends[ends <= most]
    return np.sort(rows[: fitting[-1] if len(fitting) else ends[0]])


def fit_outputs(
    kind: Kind, train: Labelled, scored: np.ndarray, classes: int, penalties: Sequence[float], seed: int
) -> np.ndarray:
    """What a probe trained on `train` says of `scored` (rows, hidden): (rows, classes) logits, or (rows, 1) numbers.

    The penalty is the best of `penalties` on a fifth of the units (the largest of equals); then all rows are used.
    """
    scaler = StandardScaler().fit(train.states)
    states, scored = scaler.transform(train.states), scaler.transform(scored)
    if len(np.unique(train.labels)) < 2:
        return _constant(kind, train.labels, len(scored), classes)
    penalty = _pick(kind, Labelled(states, train.labels, train.units), penalties, seed)
    model = _model(kind, penalty).fit(states, train.labels)
    if kind == "number":
        return model.predict(scored)[:, None]
    logits = model.decision_function(scored)
    if logits.ndim == 1:  # scikit-learn gives two classes one number
        logits = np.stack([-logits / 2, logits / 2], axis=1)
    outputs = np.full((len(scored), classes), -np.inf)  # a class that training didn't see is never chosen
    outputs[:, model.classes_] = logits
    return outputs


def _pick(kind: Kind, train: Labelled, penalties: Sequence[float], seed: int) -> float:
    different = numpy_generator(seed, "probe/penalty").permutation(np.unique(train.units))
    picking = np.isin(train.units, different[: max(1, int(_SHARE_FOR_PICKING * len(different)))])
    if len(penalties) == 1 or picking.all() or len(np.unique(train.labels[~picking])) < 2:
        return max(penalties)
    scores = {}
    for penalty in sorted(penalties, reverse=True):
        model = _model(kind, penalty).fit(train.states[~picking], train.labels[~picking])
        scores[penalty] = float(model.score(train.states[picking], train.labels[picking]))
    return max(scores, key=lambda penalty: scores[penalty])


def _model(kind: Kind, penalty: float) -> LogisticRegression | Ridge:
    return Ridge(alpha=penalty) if kind == "number" else LogisticRegression(C=1 / penalty, max_iter=_ITERATIONS)


def _constant(kind: Kind, labels: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """What can be learned of rows that are all labelled alike."""
    if kind == "number":
        return np.full((rows, 1), float(labels[0]))
    outputs = np.full((rows, classes), -np.inf)
    outputs[:, int(labels[0])] = 0.0
    return outputs


def repeat_lines(
    name: str, scores: Sequence[Mapping[str, float]], baselines: Sequence[Mapping[str, float]]
) -> list[Line]:
    """A line a metric: the mean over repeats with its interval, and the mean of what saying always the same scores."""
    return [
        Line.of(
            "overall",
            name,
            metric,
            of_repeats([one[metric] for one in scores]),
            len(scores),
            float(np.mean([one[metric] for one in baselines])),
        )
        for metric in scores[0]
    ]
