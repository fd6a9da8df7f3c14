"""A mixture as a product over objectives and domains: what is learned, against numpy's outer products."""

import numpy as np
import pytest
import torch

from mlpt.errors import UserError
from mlpt.meta.learner import MetaConfig
from mlpt.meta.rules.dga import WEIGHTS, Dga
from mlpt.meta.rules.hypergradient import LOGITS, Hypergradient
from mlpt.settings import load_settings

ARMS = ["mlm@legal", "cse@legal", "mlm@code", "cse@code", "mlm@wiki", "cse@wiki"]
BOTH = ["objective", "domain"]
BARE = {"floor": 0, "entropy": 0, "smoothing": 0}


class Reported:
    """As much of a context as rules use here."""

    def __init__(self):
        self.report = {}
        self.model = torch.nn.Linear(1, 1)


def normed(weights):
    return weights / weights.sum()


def test_a_step_on_the_logits_of_objectives_and_domains_makes_a_product():
    rule = Hypergradient(Hypergradient.Config(optimizer="sgd", lr=1.0, factor=BOTH, **BARE), ARMS)
    gradient = [0.3, -0.5, 1.0, 0.2, -0.7]  # mlm, cse; legal, code, wiki
    part = rule.descend(rule.first(), {LOGITS: torch.tensor(gradient)}, Reported())
    by_hand = np.outer(np.exp([-1.0, -0.2, 0.7]), np.exp([-0.3, 0.5]))
    assert list(part.values.values()) == pytest.approx(normed(by_hand).ravel().tolist(), abs=1e-6)


def test_what_is_differentiated_is_the_same_product():
    rule = Hypergradient(Hypergradient.Config(optimizer="sgd", lr=1.0, factor=BOTH, **BARE), ARMS)
    context = Reported()
    part = rule.descend(rule.first(), {LOGITS: torch.tensor([0.3, -0.5, 1.0, 0.2, -0.7])}, context)
    share = rule.share(part, context)
    weights = share.weights(share.outer)
    assert {name: float(one.detach()) for name, one in weights.items()} == pytest.approx(dict(part.values), abs=1e-6)
    values = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, 0.1])
    torch.stack(list(weights.values())).mul(values).sum().backward()
    p = np.array(list(part.values.values()))
    by_arm = p * (values.numpy() - p @ values.numpy())  # of a softmax
    table = by_arm.reshape(3, 2)
    assert share.outer[LOGITS].grad.tolist() == pytest.approx([*table.sum(0), *table.sum(1)], abs=1e-6)


def test_a_level_has_the_mean_alignment_of_its_arms():
    rule = Dga(Dga.Config(lr=0.7, scale="plain", factor=BOTH, **BARE), ARMS)
    part, logits = rule.first(), np.zeros((3, 2))
    for alignments in ([0.5, -1.0, 0.2, 0.4, 0.0, -0.3], [1.0, 0.1, -0.3, 0.9, 2.0, 0.3]):
        part = rule.descend(part, {WEIGHTS: -torch.tensor(alignments, dtype=torch.float64)}, Reported())
        shares, table = normed(np.exp(logits)), np.array(alignments).reshape(3, 2)
        objectives = (shares * table).sum(0) / shares.sum(0)
        domains = (shares * table).sum(1) / shares.sum(1)
        logits = logits + 0.7 * (objectives[None, :] + domains[:, None])
    assert list(part.values.values()) == pytest.approx(normed(np.exp(logits)).ravel().tolist(), abs=1e-9)


def test_alignments_of_each_factor_are_scaled_by_themselves():
    """A hundredfold difference between domains leaves objectives the step that they have alone."""
    rule = Dga(Dga.Config(lr=0.5, factor=BOTH, **BARE), ARMS)
    alignments = [100 * domain + objective for domain in (0.0, 1.0, 2.0) for objective in (0.01, -0.01)]
    part = rule.descend(rule.first(), {WEIGHTS: -torch.tensor(alignments, dtype=torch.float64)}, Reported())
    for domain in ("legal", "code", "wiki"):
        assert part.values[f"mlm@{domain}"] / part.values[f"cse@{domain}"] == pytest.approx(np.exp(2 * 0.5), rel=1e-6)


def test_a_task_has_the_logit_of_its_name_alone():
    rule = Hypergradient(Hypergradient.Config(optimizer="sgd", lr=1.0, factor=BOTH, **BARE), [*ARMS[:4], "sst2"])
    gradient = {LOGITS: torch.tensor([0.0, 0.0, -1.0, 0.0, 0.0])}  # mlm, cse, sst2; legal, code
    part = rule.descend(rule.first(), gradient, Reported())
    assert part.values["sst2"] == pytest.approx(np.e / (np.e + 4))


@pytest.mark.parametrize("rule", ["dga", "hypergradient"])
def test_factors_that_make_no_sense_are_one_line(rule):
    for factor in (["task"], ["domain", "domain"]):
        with pytest.raises(UserError, match="factor") as error:
            load_settings(MetaConfig, {"rules": {"mixture": {"rule": rule, "factor": factor}}})
        assert "\n" not in str(error.value)
    kind = {"dga": Dga, "hypergradient": Hypergradient}[rule]
    with pytest.raises(UserError, match="have no domains"):
        kind(kind.Config(factor=BOTH), ["mlm", "cse"])
