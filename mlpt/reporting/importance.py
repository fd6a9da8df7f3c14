"""Which parameters of a sweep mattered: what a random forest loses on trials it has not seen when one is shuffled.

Permutation importance (Breiman, 2001, Machine Learning 45), measured on held-out folds: a parameter that only fits
noise gets none. Trials of one point under several seeds stay in one fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlpt.reporting.sweeps import TrialRow

LEAST = 10  # points of the space: with fewer, folds of two say nothing
_FOLDS, _TREES, _SHUFFLES = 5, 100, 20


@dataclass(frozen=True)
class Importance:
    """share     by parameter: how much of the goal's variance over the trials its shuffling costs (mean over folds).
    spread    standard deviation of that over the folds.
    explained share of the variance that the forest explains on trials that it has not seen; 0 and below: nothing.
    points    of the space that were measured.
    """

    share: dict[str, float]
    spread: dict[str, float]
    explained: float
    points: int


def importance_of(trials: Sequence[TrialRow], parameters: Sequence[str], goal: str) -> Importance | None:
    """Importance of `parameters` for the metric `goal`; None where too few points were measured or all are equal."""
    known = [trial for trial in trials if trial.status == "finished" and np.isfinite(trial.metrics.get(goal, np.nan))]
    points = [str([trial.parameters.get(name) for name in parameters]) for trial in known]
    wanted = np.array([trial.metrics[goal] for trial in known])
    if len(set(points)) < LEAST or np.ptp(wanted) == 0 or len(parameters) < 2:
        return None
    from sklearn.ensemble import RandomForestRegressor  # slow to import
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import GroupKFold

    table = np.column_stack([_column([trial.parameters.get(name) for trial in known]) for name in parameters])
    variance, error, found = wanted.var(), 0.0, []
    for train, test in GroupKFold(_FOLDS).split(table, groups=points):
        forest = RandomForestRegressor(_TREES, random_state=0).fit(table[train], wanted[train])
        error += float(((forest.predict(table[test]) - wanted[test]) ** 2).sum())
        lost = permutation_importance(
            forest, table[test], wanted[test], scoring="neg_mean_squared_error", n_repeats=_SHUFFLES, random_state=0
        )
        found.append(lost.importances_mean / variance)
    share, spread = np.mean(found, axis=0).tolist(), np.std(found, axis=0).tolist()
    explained = 1 - error / len(wanted) / variance
    return Importance(
        dict(zip(parameters, share, strict=True)),
        dict(zip(parameters, spread, strict=True)),
        float(explained),
        len(set(points)),
    )


def _column(values: Sequence[object]) -> np.ndarray:
    """(n,) float64: numbers as they are (a forest only asks for their order), words by their place in the alphabet."""
    if all(isinstance(value, int | float) for value in values):
        return np.array(values, dtype=float)
    words = sorted({str(value) for value in values})
    return np.array([words.index(str(value)) for value in values], dtype=float)
