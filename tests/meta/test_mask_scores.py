"""Rule `mask_scores`: against the same look-ahead written out in plain autograd; exact sparsity; state."""

import json

import numpy as np
import pytest
import torch
from tiny_bert import VOCABULARY, tiny_bert, token_batch
from torch.func import functional_call

from mlpt.arms import arms_of
from mlpt.data.batch import Batch, Source
from mlpt.data.sources import ALL
from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.joint_lookahead import LookAhead, LookaheadConfig
from mlpt.meta.learner import MetaConfig, MetaLearner, Updates
from mlpt.meta.policy import Evidence, Policy
from mlpt.meta.rules.mask_scores import MaskScores, learned_scores
from mlpt.meta.snapshot import take_snapshot
from mlpt.models.encoder import Encoder
from mlpt.models.masked import THETA, current_masks, set_trainable
from mlpt.objectives import make_objectives
from mlpt.settings import load_settings
from mlpt.sparsity.config import MaskConfig, mask_encoder
from mlpt.sparsity.scores import at_threshold
from mlpt.storage.state import State


class Texts:
    def __len__(self) -> int:
        return 16

    def batch(self, rows: np.ndarray) -> Batch:
        return Batch(token_batch(16, 12)[torch.from_numpy(rows)], rows)


SOURCES = {ALL: Source(Texts(), Texts(), Texts())}
ARMS = arms_of(["mlm"], [], None, texts=False)


def masked_encoder(sparsity: float = 0.5) -> Encoder:
    model = Encoder(tiny_bert(), make_objectives({"mlm": {"probability": 0.5}}, VOCABULARY))
    mask_encoder(MaskConfig(sparsity=sparsity, train=("weights", "heads")), model, None, seed=0)
    return model


def warm_optimizer(model) -> torch.optim.AdamW:
    """SGD-like AdamW state: moments so that a step is -lr * (0.1 g + const) / const, smooth in the gradient."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        optimizer.state[parameter] = {
            "step": torch.tensor(100.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.full_like(parameter, 1e-2),
        }
    return optimizer


def context_of(model, optimizer, step: int = 100) -> MetaContext:
    return MetaContext(
        model.eval(), optimizer, ARMS.every, ["mlm"], {"mlm": 1.0}, SOURCES, seed=0, batch_size=4, step=step
    )


def updates_of(start: int = 0, **masks) -> Updates:
    """The rule on its own: it learns masks, and no rule makes a mixture."""
    rule = MaskScores(MaskScores.Config(**masks), ["mlm"])
    return Updates({"masks": rule}, LookaheadConfig(start=start))


@pytest.mark.parametrize("engine", ["higher", "finite_difference"])
def test_the_gradient_is_that_of_held_out_loss_through_a_step_of_the_masked_weights(engine):
    model = masked_encoder()
    optimizer = warm_optimizer(model)
    rule = MaskScores(MaskScores.Config(), ["mlm"])
    context = context_of(model, optimizer)
    rule.apply(rule.first(), model)
    scores = learned_scores(model)
    share = rule.share(rule.first(), context)
    assert share.outer.keys() == scores.keys()
    policy = Updates({"masks": rule}, LookaheadConfig()).first()
    gradients = LookAhead(LookaheadConfig(engine=engine)).gradients(policy, {"masks": share}, context)["masks"]

    leaves = {name: one.detach().clone().requires_grad_() for name, one in scores.items()}
    weights = {n: p.detach().requires_grad_(p.requires_grad) for n, p in model.named_parameters() if n not in leaves}
    trained = [name for name, one in weights.items() if one.requires_grad]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        inner = functional_call(model, {**weights, **leaves}, ("mlm", context.train_inputs("mlm", 4, 0)))
        found = torch.autograd.grad(inner, [weights[n] for n in trained], create_graph=True, allow_unused=True)
        moved = dict(weights)
        for name, gradient in zip(trained, found, strict=True):
            if gradient is not None:
                first, second = 0.1 * gradient, 0.999 * 1e-2 + 0.001 * gradient**2
                scale = (second / (1 - 0.999**101)).sqrt() + 1e-8
                moved[name] = weights[name] - 1e-2 * first / (1 - 0.9**101) / scale
        outer = functional_call(model, {**moved, **leaves}, ("mlm", context.dev_inputs("mlm", 4, 0, 100, 100)))
        reference = torch.autograd.grad(outer, list(leaves.values()))
    assert context.report["dev_loss"] == pytest.approx({"mlm": outer.item()}, rel=1e-5)
    tolerance = {"rtol": 1e-4, "atol": 1e-7} if engine == "higher" else {"rtol": 5e-2, "atol": 1e-4}
    for name, expected in zip(leaves, reference, strict=True):
        torch.testing.assert_close(gradients[name], expected, **tolerance)
    assert max(float(one.abs().max()) for one in reference) > 1e-3


def test_updates_move_masks_and_keep_every_matrix_s_count():
    model = masked_encoder()
    counts = {name: int(mask.sum()) for name, mask in current_masks(model).items()}
    updates, optimizer = updates_of(lr=0.02), warm_optimizer(model)
    rule, policy = updates.rules["masks"], updates.first()
    for step in (100, 110):
        context = context_of(model, optimizer, step)
        rule.apply(policy.parts["masks"], model)
        policy = Policy(policy.version + 1, updates.parts(policy, Evidence(), context))
    assert context.report["mask_changes"] > 0
    assert policy.values("masks") == {"steps": 2}
    rule.apply(policy.parts["masks"], model)
    assert {name: int(mask.sum()) for name, mask in current_masks(model).items()} == counts
    for name, scores in policy.tensors("masks").items():
        assert int((scores > THETA).sum()) == counts[name.removeprefix("backbone.").replace("scores", "weight")]
    assert not any("pooler" in name for name in policy.tensors("masks"))


def test_scores_are_shifted_so_that_their_threshold_stays():
    scores = torch.tensor([0.3, 0.1, 0.1, 0.5])
    moved = at_threshold(scores, 2, 0.01)
    assert (moved > 0.01).tolist() == [True, False, False, True]
    torch.testing.assert_close(moved, scores - 0.09)
    tied = at_threshold(torch.full((4,), 0.2), 3, 0.01)
    assert int((tied > 0.01).sum()) == 1
    assert (at_threshold(torch.tensor([-1.0, 1.0]), 0, 0.01) > 0.01).all()


def test_a_learner_resumes_masks_bit_for_bit_and_works_with_a_mixture_rule():
    rules = {"mixture": {"rule": "fixed", "weights": {"mlm": 1}}, "masks": {"rule": "mask_scores"}}
    config = load_settings(MetaConfig, {"interval": 10, "rules": rules, "lookahead": {"start": 0}})
    worker = masked_encoder()
    snapshot = take_snapshot(worker, warm_optimizer(worker), 10, 1e-2, moments=True)

    def learner():
        model = masked_encoder()
        return MetaLearner(config, model, warm_optimizer(model), SOURCES, ARMS, 0, 4)

    whole = learner()
    first = whole.update(snapshot, Evidence())
    assert first.parts.keys() == {"masks"}
    resumed = learner()
    resumed.start(whole.policy, State(json.loads(json.dumps(first.state.values)), first.state.tensors))
    expected, answer = whole.update(snapshot, Evidence()), resumed.update(snapshot, Evidence())
    assert answer.version == expected.version == 2
    for ours, theirs in ((answer.parts["masks"], expected.parts["masks"]), (answer.state, expected.state)):
        assert ours.values == theirs.values
        assert ours.tensors.keys() == theirs.tensors.keys()
        assert len(ours.tensors) > 0
        assert all(torch.equal(one, theirs.tensors[name]) for name, one in ours.tensors.items())


def test_no_update_before_adamw_is_warm_and_none_without_masks():
    model = masked_encoder()
    updates = updates_of(start=50)
    first = updates.first()
    early = updates.parts(first, Evidence(), context_of(model, warm_optimizer(model), step=49))
    assert early["masks"] is first.parts["masks"]
    plain = Encoder(tiny_bert(), make_objectives({"mlm": {}}, VOCABULARY))
    set_trainable(plain, weights=True, scores=False, heads=True)
    with pytest.raises(UserError, match="has none"):
        updates.parts(first, Evidence(), context_of(plain, warm_optimizer(plain)))
