"""What each metric says of a distribution, by its formula in plain arithmetic."""

import math

import pytest
import torch

from mlpt.questioning.metrics import THRESHOLDS, token_score

# Of three tokens: sure and right, sure and wrong, undecided.
P = [[0.9, 0.06, 0.04], [0.9, 0.06, 0.04], [0.4, 0.35, 0.25]]
TOKENS = [0, 1, 2]
LOG_P = torch.tensor(P, dtype=torch.float64).log().float()

EXPECTED = {
    "loss": [-math.log(0.9), -math.log(0.06), -math.log(0.25)],
    "correctness": [0, 1, 1],
    "confidence": [0.1, 0.1, 0.6],
    "entropy": [-sum(p * math.log(p) for p in row) for row in P],
    "margin": [1 - 0.84, 1 - 0.84, 1 - 0.05],
}


@pytest.mark.parametrize("metric", EXPECTED)
def test_a_metric_is_its_formula(metric):
    found = token_score(LOG_P, torch.tensor(TOKENS), metric)
    assert found.tolist() == pytest.approx(EXPECTED[metric], abs=1e-6)


def test_a_certain_model_scores_zero_by_every_metric():
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    for metric in EXPECTED:
        assert token_score(certain, torch.tensor([0]), metric).item() == 0


def test_the_published_threshold_is_a_probability_of_0_9048_and_strict():
    p = torch.tensor([[0.904838], [0.904837]], dtype=torch.float64)
    losses = token_score(torch.cat([p, 1 - p], 1).log(), torch.tensor([0, 0]), "loss")
    assert (losses > THRESHOLDS["loss"]).tolist() == [False, True]


def test_confidence_and_margin_ask_for_the_same_certainty_as_the_loss():
    """Two tokens, the likelier one with exp(-0.1): each metric is at its threshold."""
    p = math.exp(-0.1)
    log_p = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
    for metric in ("loss", "confidence", "margin"):
        assert token_score(log_p, torch.tensor([0]), metric).item() == pytest.approx(THRESHOLDS[metric])


def test_random_has_no_distribution():
    with pytest.raises(ValueError, match="no function of a distribution"):
        token_score(LOG_P, torch.tensor(TOKENS), "random")
