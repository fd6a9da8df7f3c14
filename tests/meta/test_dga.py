"""Rule `dga` against the paper's update, against the other rule that looks ahead, and against noise."""

import math

import numpy as np
import pytest
import torch
from tiny_encoder import ARMS, TinyBlocks, make_adamw, make_encoder, make_sources, train

from mlpt.errors import UserError
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.rules.dga import WEIGHTS, Dga
from mlpt.meta.snapshot import take_snapshot
from mlpt.settings import load_settings

PAPER = {"scale": "plain", "averaging": 0, "doubt": 0, "entropy": 0, "floor": 0}


class Reported:
    """As much of a context as `descend` writes to."""

    def __init__(self):
        self.report = {}


def descend(rule, part, alignments):
    return rule.descend(part, {WEIGHTS: -torch.tensor(alignments, dtype=torch.float64)}, Reported())


def shares(part):
    return list(part.values.values())


def test_without_averages_a_step_is_the_papers_exponentiated_gradient():
    rule = Dga(Dga.Config(lr=0.7, **PAPER), ["a", "b", "c"])
    part, alpha = rule.first(), np.full(3, 1 / 3)
    for alignments in ([0.5, -1.0, 0.2], [2.0, 0.1, -0.3]):
        part = descend(rule, part, alignments)
        alpha = alpha * np.exp(0.7 * np.array(alignments))
        alpha /= alpha.sum()
        assert shares(part) == pytest.approx(alpha.tolist(), abs=1e-12)


def test_smoothing_is_the_papers_moving_average_of_the_mixture():
    rule = Dga(Dga.Config(lr=1.0, **{**PAPER, "smoothing": 0.9}), ["a", "b"])
    part = descend(rule, rule.first(), [math.log(3), 0.0])
    assert shares(part) == pytest.approx([0.9 * 0.5 + 0.1 * 0.75, 0.9 * 0.5 + 0.1 * 0.25], abs=1e-12)


def test_relative_alignments_move_alike_whatever_their_scale_and_offset():
    found = []
    for scale, offset in ((1.0, 0.0), (1e-6, 5.0)):
        rule = Dga(Dga.Config(lr=0.5, **{**PAPER, "scale": "relative"}), ["a", "b", "c"])
        found.append(shares(descend(rule, rule.first(), [offset + scale * one for one in (3.0, 0.0, -3.0)])))
    root = math.sqrt(18 / 3)  # mean square of 3, 0, -3
    logits = torch.tensor([0.5 * 3 / root, 0.0, -0.5 * 3 / root], dtype=torch.float64)
    assert found[0] == pytest.approx(logits.softmax(0).tolist(), abs=1e-12)
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def test_what_noise_alone_could_be_moves_nothing_and_a_steady_difference_does():
    """Alignments +d and -d with noise of standard deviation s that alternates in sign, so that averages are known."""
    settings = {**PAPER, "averaging": 0.5, "doubt": 2.0}
    noisy = Dga(Dga.Config(lr=1.0, **settings), ["a", "b"])
    clear = Dga(Dga.Config(lr=1.0, **settings), ["a", "b"])
    before = noisy.first()
    for sign in (1, -1, 1, -1):
        moved = descend(noisy, before, [0.1 + sign, -0.1 - sign])
        assert shares(moved) == pytest.approx([0.5, 0.5], abs=1e-12)
    part = clear.first()
    for sign in (1, -1, 1, -1):
        part = descend(clear, part, [1 + 0.1 * sign, -1 - 0.1 * sign])
    assert part.values["a"] > 0.9


def test_a_step_shrinks_by_the_standard_error_of_a_weighted_mean():
    """Two updates with averaging k: the newer has weight 1 / (1 + k). Expected numbers by numpy's weighted moments."""
    k, doubt = 0.6, 0.8
    rule = Dga(Dga.Config(lr=1.0, **{**PAPER, "averaging": k, "doubt": doubt}), ["a", "b", "c"])
    seen = np.array([[1.0, 0.5, -1.2], [2.0, -0.1, -1.0]])
    part = descend(rule, rule.first(), seen[0].tolist())
    assert shares(part) == pytest.approx([1 / 3] * 3)  # one alone says nothing of its spread
    part = descend(rule, part, seen[1].tolist())
    weights = np.array([k, 1.0]) / (1 + k)
    mean = np.average(seen, axis=0, weights=weights)
    biased = np.average((seen - mean) ** 2, axis=0, weights=weights).mean()
    squares = (weights**2).sum()
    error = math.sqrt(biased / (1 - squares) * squares)
    logits = np.array([one * max(0.0, 1 - (doubt * error / one) ** 2) for one in mean])
    expected = np.exp(logits) / np.exp(logits).sum()
    assert shares(part) == pytest.approx(expected.tolist(), abs=1e-9)


def test_alignments_are_what_the_hypergradient_of_the_logits_is_made_of():
    """d L / d logit_i = p_i (dL/dw_i - sum_j p_j dL/dw_j), on the same snapshot with the same batches."""
    model = make_encoder(dropout=0.0)
    optimizer = make_adamw(model, lr=1e-2)
    train(model, optimizer, TinyBlocks(1), 9)
    reports = {}
    for name, settings in (("dga", PAPER), ("hypergradient", {"floor": 0, "entropy": 0})):
        other = make_encoder(seed=3)
        config = load_settings(
            MetaConfig,
            {"rules": {"mixture": {"rule": name, **settings}}, "lookahead": {"start": 0}, "target": ["order"]},
        )
        learner = MetaLearner(config, other, make_adamw(other), make_sources(), ARMS, seed=7, batch_size=24)
        reports[name] = learner.update(take_snapshot(model, optimizer, 9, 1e-2, moments=True), Evidence()).report
    by_weight = -np.array(list(reports["dga"]["alignment"].values()))
    expected = (by_weight - by_weight.mean()) / 3
    assert list(reports["hypergradient"]["hypergradient"].values()) == pytest.approx(expected.tolist(), rel=1e-3)


def test_the_floor_holds_and_one_that_does_not_fit_is_refused():
    rule = Dga(Dga.Config(lr=100.0, **{**PAPER, "floor": 0.1}), ["a", "b", "c"])
    assert shares(descend(rule, rule.first(), [1.0, -1.0, -1.0])) == pytest.approx([0.8, 0.1, 0.1])
    with pytest.raises(UserError, match="floor"):
        Dga(Dga.Config(floor=0.4), ["a", "b", "c"])


def test_doubt_without_averages_is_refused():
    with pytest.raises(UserError, match="averaging"):
        load_settings(MetaConfig, {"rules": {"mixture": {"rule": "dga", "doubt": 2}}})
