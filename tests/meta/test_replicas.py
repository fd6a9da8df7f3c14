"""A look-ahead cut up among replicas of the learner: their hypergradients are averaged, and one state moves."""

import pytest
import torch
from test_joint_lookahead import INSIDE, Inside, context_of, mixture_rule, numeric, trainee
from tiny_encoder import ARMS, NAMES, TinyBlocks, make_adamw, make_encoder, make_sources, train

from mlpt.config import load_run_config
from mlpt.errors import UserError
from mlpt.meta.joint_lookahead import LookaheadConfig
from mlpt.meta.learner import MetaConfig, MetaLearner, Updates
from mlpt.meta.policy import Evidence, Policy
from mlpt.meta.snapshot import take_snapshot
from mlpt.settings import load_settings

LOGITS = "mixture.logits"


class Seen(Inside):
    """Keeps the gradient that it is given."""

    def descend(self, part, gradients, context):
        self.gradient = gradients[INSIDE]
        return super().descend(part, gradients, context)


def halves(context, target):
    """The look-ahead of each half of the rows, differentiated numerically by plain torch training."""
    model = context.model
    logits, weight = torch.zeros(3, dtype=torch.float64), model.get_parameter(INSIDE).detach()
    for replica in (0, 1):
        half = context.of_replica(replica, 2)
        yield {which: numeric(half, 1, logits, weight, target, which) for which in ("logits", "inside")}


def test_the_gradient_of_two_replicas_is_the_mean_of_two_look_aheads_on_half_the_rows():
    # `loss_after`, which `numeric` calls, draws 12 // 3 rows an arm: half of a batch of 24.
    model, optimizer = trainee()
    context = context_of(model, optimizer, {"words": 1.0})
    rows = {"batch_size": 24, "dev_batch_size": 24}
    expected = list(halves(context, {"words": 1.0}))
    assert (expected[0]["inside"] - expected[1]["inside"]).abs().max() > 1e-4
    inside = Seen({}, NAMES)
    updates = Updates({"mixture": mixture_rule(), "inside": inside}, LookaheadConfig(start=0, **rows), replicas=2)
    updates.parts(updates.first(), Evidence(), context)
    mean = {which: (expected[0][which] + expected[1][which]) / 2 for which in ("logits", "inside")}
    torch.testing.assert_close(inside.gradient, mean["inside"], rtol=1e-4, atol=1e-7)
    found = torch.tensor(list(context.report["hypergradient"].values()), dtype=torch.float64)
    torch.testing.assert_close(found, mean["logits"], rtol=1e-3, atol=1e-6)


def test_replicas_have_disjoint_rows_of_the_one_draw():
    context = context_of(*trainee())
    whole, _ = context.train_batch("words", 12, 0)
    parts = [context.of_replica(replica, 3).train_batch("words", 4, 0)[0] for replica in range(3)]
    assert [int(row) for part in parts for row in part.rows] == whole.rows.tolist()
    assert len(set(whole.rows.tolist())) == 12
    # What masks them differs too.
    noises = [context.of_replica(replica, 3).train_batch("words", 4, 0)[1].initial_seed() for replica in range(3)]
    assert len(set(noises)) == 3
    assert noises[0] == context.train_batch("words", 4, 0)[1].initial_seed()


def learner(replicas):
    settings = {"mixture": {"rule": "hypergradient", "floor": 0.0}}
    values = {"rules": settings, "replicas": replicas, "lookahead": {"start": 0, "batch_size": 36}}
    model = make_encoder(seed=3)
    config = load_settings(MetaConfig, values)
    return MetaLearner(config, model, make_adamw(model), make_sources(), ARMS, 7, batch_size=24)


def snapshots():
    model = make_encoder(dropout=0.0)
    optimizer = make_adamw(model, lr=1e-2)
    for step in (9, 10):
        train(model, optimizer, TinyBlocks(1), 9)
        yield take_snapshot(model, optimizer, step, 1e-2, moments=True)


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_elsewhere_give_the_policies_of_one_process_bit_for_bit(replicas):
    alone, leading, helping = learner(replicas), learner(replicas), learner(replicas)
    policy, state = leading.policy, leading.state()
    for snapshot in snapshots():
        expected = alone.update(snapshot, Evidence())
        found = []
        for replica in reversed(range(1, replicas)):  # in whatever order they are ready
            helping.start(policy, state)
            found = [helping.found(snapshot, replica), *found]
        answer = leading.update(snapshot, Evidence(), lambda found=found: found)
        assert answer.parts == expected.parts
        assert answer.report["dev_loss"] == expected.report["dev_loss"]
        assert leading.state().values == alone.state().values != state.values
        assert helping.policy.version == policy.version  # it only computes
        policy, state = leading.policy, leading.state()
    assert policy.version == 2


def test_more_replicas_are_another_estimate_of_the_same_gradient():
    snapshot = next(snapshots())
    one, two = (learner(replicas).update(snapshot, Evidence()).report for replicas in (1, 2))
    assert one["hypergradient"] != two["hypergradient"]
    assert one["dev_loss"]["words"] == pytest.approx(two["dev_loss"]["words"], rel=0.2)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"mixture": "uniform"}, "no rule of this run makes one"),
        ({"mixture": "mometas"}, "rule 'mometas' makes none"),
        ({"mixture": "loss_ratio"}, "no rule of this run makes one"),
    ],
)
def test_what_makes_no_look_ahead_has_no_replicas(rules, says):
    with pytest.raises(UserError, match=f"replicas share out look-aheads, and {says}: set replicas=1") as raised:
        load_run_config("quickstart", {"meta": {"rules": rules, "replicas": 2}})
    assert "\n" not in str(raised.value)
    load_run_config("quickstart", {"meta": {"rules": {"mixture": "dga"}, "replicas": 2}})


def test_a_policy_is_needed_to_find_a_gradient_and_none_moves():
    helping = learner(2)
    snapshot = next(snapshots())
    skewed = Policy(7, helping.policy.parts)
    helping.start(skewed, None)
    found = [helping.found(snapshot, 1) for _ in range(2)]
    assert helping.policy is skewed
    for name, tensor in found[0].tensors.items():
        assert torch.equal(tensor, found[1].tensors[name])
