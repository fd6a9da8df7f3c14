"""Linear probes against scikit-learn's own pipeline and closed forms; halves of rows are what they are said to be."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlpt.downstream.linear_probe import Labelled, ProbeConfig, draw_halves, fit_outputs
from mlpt.errors import UserError

UNITS = np.repeat(np.arange(40), [1 + n % 3 for n in range(40)])


def test_units_are_never_on_both_sides_and_every_repeat_is_another_half():
    drawn = draw_halves(UNITS, None, ProbeConfig(repeats=5))
    for halves in drawn:
        train, scored = set(UNITS[halves.train]), set(UNITS[halves.scored])
        assert len(train) == len(scored) == 20
        assert not train & scored
        assert len(halves.train) + len(halves.scored) == len(UNITS), "whole units, all of them"
    assert len({tuple(halves.train) for halves in drawn}) == 5
    again = draw_halves(UNITS, None, ProbeConfig(repeats=5))
    assert all((one.train == other.train).all() for one, other in zip(drawn, again, strict=True))
    other = draw_halves(UNITS, None, ProbeConfig(repeats=5, seed=7))
    assert any(
        (one.train != two.train).any()
        for one, two in zip(drawn, other, strict=True)
        if len(one.train) == len(two.train)
    )


def test_official_held_out_rows_are_halved_by_themselves_and_halves_are_capped():
    held_out = np.arange(30)
    (halves, *_) = draw_halves(UNITS, held_out, ProbeConfig(rows=10))
    assert len(halves.scored) == 10
    assert 8 <= len(halves.train) <= 10, "whole units of up to three rows"
    (halves, *_) = draw_halves(UNITS, held_out, ProbeConfig())
    assert len(halves.scored) == 15
    assert halves.scored.max() < 30


def test_too_few_rows_are_refused():
    with pytest.raises(UserError, match="too few rows"):
        draw_halves(np.zeros(9, dtype=int), None, ProbeConfig())


def blobs(rows, classes=3, noise=0.3, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    centres = np.random.default_rng(99).normal(size=(classes, 8))
    return (centres[labels] + noise * random.normal(size=(rows, 8))).astype(np.float32), labels


def labelled(states, labels):
    return Labelled(states, labels, np.arange(len(labels)))


def test_classes_are_told_apart_as_by_scikit_learns_pipeline():
    (states, labels), (scored, truth) = blobs(200), blobs(100, seed=1)
    found = fit_outputs("classes", labelled(states, labels), scored, 3, (10.0,), 0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(states, labels)
    np.testing.assert_allclose(found, pipeline.decision_function(scored), atol=1e-4)
    assert (found.argmax(1) == truth).mean() > 0.95


def test_numbers_follow_the_closed_form_of_ridge_regression():
    random = np.random.default_rng(0)
    states = random.normal(size=(50, 4)).astype(np.float32)
    labels = states @ np.array([1.0, -2.0, 0.5, 0.0]) + 3 + 0.1 * random.normal(size=50)
    z = (states - states.mean(0)) / states.std(0)
    weights = np.linalg.solve(z.T @ z + 10 * np.eye(4), z.T @ (labels - labels.mean()))
    found = fit_outputs("number", labelled(states, labels), states, 1, (10.0,), 0)
    np.testing.assert_allclose(found[:, 0], z @ weights + labels.mean(), atol=1e-4)


def test_the_penalty_is_picked_on_rows_that_it_was_not_fitted_to():
    """As many dimensions as rows: without a penalty least squares fits the noise and errs wildly on other rows."""
    random = np.random.default_rng(0)
    states = random.normal(size=(220, 200)).astype(np.float32)
    labels = states[:, 0] + random.normal(size=220)
    scored = random.normal(size=(2000, 200)).astype(np.float32)

    def error(*penalties):
        said = fit_outputs("number", labelled(states, labels), scored, 1, penalties, 0)[:, 0]
        return float(np.mean((said - scored[:, 0]) ** 2))

    assert error(0.001, 300.0) == error(300.0) < error(0.001)


def test_a_class_that_training_lacks_is_never_chosen_and_two_classes_have_two_columns():
    states, labels = blobs(60, classes=2)
    found = fit_outputs("classes", labelled(states, 2 * labels), states, 4, (1.0,), 0)
    assert found.shape == (60, 4)
    assert np.isneginf(found[:, [1, 3]]).all()
    assert (found.argmax(1) == 2 * labels).mean() > 0.95


def test_rows_that_are_all_labelled_alike_teach_that_label():
    states, _ = blobs(20)
    assert (fit_outputs("classes", labelled(states, np.full(20, 2)), states, 3, (1.0,), 0).argmax(1) == 2).all()
    assert (fit_outputs("number", labelled(states, np.full(20, 1.5)), states, 1, (1.0,), 0) == 1.5).all()
