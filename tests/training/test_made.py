"""The gradients that training keeps for the meta-learner: those of its own passes, at no cost to what it computes."""

import json

import pytest
import torch
from killing import KilledError, killed_at
from ranks import run_ranks
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mlpt.config import RunConfig
from mlpt.run.build import run_rank
from mlpt.settings import load_settings, merge
from mlpt.training.group import Group
from mlpt.training.made import GradientRecorder
from mlpt.training.nonfinite import gradient_norm
from mlpt.training.tracker import read_metrics

# Arms of a step's micro-batches, and the weights of their losses.
SLOTS = (("a", 1.0), ("b", 1.0), ("a", 1.0), ("b", 0.5))
SCALE = 8.0  # of a loss against underflow


class Tied(nn.Module):
    """A weight that is used twice, and one that only arm `b` reads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, arm, rows):
        states = self.shared(torch.tanh(self.shared(rows)))
        return (self.head(states) if arm == "b" else states).square().mean()


def rows(slot):
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(slot))


def step(forward, model, recorder, group, clip):
    """Step 7 of training: the rank's passes, and what they leave."""
    mine = [slot for slot in range(len(SLOTS)) if slot % group.world == group.rank]
    with recorder.step(7, model):
        for slot in mine:
            arm, weight = SLOTS[slot]
            weight *= group.world / len(SLOTS)
            last = slot == mine[-1] or group.world == 1
            with recorder.passes(arm, weight, SCALE):
                if last:
                    (forward(arm, rows(slot)) * weight * SCALE).backward()
                else:
                    with forward.no_sync():
                        (forward(arm, rows(slot)) * weight * SCALE).backward()
    for one in model.parameters():
        one.grad.div_(SCALE)
    norm = gradient_norm(model.parameters(), clip)
    recorder.close(7, model, True, norm, clip)


def check(kept, clip):
    """What was kept against gradients of one pass after another."""
    model, total = Tied(), 0.0
    means = {}
    for slot, (arm, weight) in enumerate(SLOTS):
        loss = model(arm, rows(slot))
        found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True, allow_unused=True)
        gradient = nn.utils.parameters_to_vector(found)
        total = total + weight / len(SLOTS) * gradient
        means.setdefault(arm, []).append((weight, gradient))
    norm = float(total.norm())
    assert norm > clip > 0
    assert kept.clipped == pytest.approx(clip / norm, rel=1e-4)
    torch.testing.assert_close(torch.from_numpy(kept.total), total * clip / norm, rtol=1e-4, atol=1e-6)
    assert set(kept.arms) == {"a", "b"}
    for arm, weighted in means.items():
        expected = sum(weight * one for weight, one in weighted) / sum(weight for weight, _ in weighted)
        torch.testing.assert_close(torch.from_numpy(kept.arms[arm]), expected, rtol=1e-5, atol=1e-7)


def test_it_keeps_each_arms_mean_gradient_and_the_one_that_the_optimiser_took():
    model, group = Tied(), Group()
    recorder = GradientRecorder(8, group)
    step(model, model, recorder, group, clip=0.1)
    check(recorder.kept, clip=0.1)
    again = GradientRecorder(8, group)
    again.load_state(recorder.state())
    check(again.kept, clip=0.1)
    plain = Tied()
    step(plain, plain, GradientRecorder(None, group), group, clip=0.1)
    assert all(
        torch.equal(one.grad, other.grad) for one, other in zip(model.parameters(), plain.parameters(), strict=True)
    )
    with recorder.step(8, model):  # of which no update is told
        pass
    assert recorder.kept is None


def as_rank(group):
    model = Tied()
    wrapped = DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=True)
    recorder = GradientRecorder(8, group)
    step(wrapped, model, recorder, group, clip=0.1)
    assert (recorder.kept is not None) == group.leads
    if group.leads:
        check(recorder.kept, clip=0.1)


def test_two_ranks_keep_what_one_would():
    run_ranks(as_rank)


CONFIG = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2},
    "objectives": ["mlm", "dtd"],
    "meta": {
        "interval": 4,
        "lag": 1,
        "rules": {"mixture": {"rule": "hypergradient"}},
        "lookahead": {"engine": "alignment", "start": 0, "dev_batch_size": 4},
    },
    "train": {
        "steps": 10,
        "batch_size": 8,
        "micro_batch_size": 2,
        "draw": "stratified",
        "log_every": 1,
        "evaluate_batches": 1,
        "checkpoint_every": 4,
    },
    "report": {"tensorboard": False},
}


def run(config, blocks, folder, **keywords):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return run_rank(config, blocks, folder, Group(), **keywords)


def test_a_run_resumed_between_the_step_and_the_update_goes_on_bit_for_bit(small_blocks, tmp_path):
    config = load_settings(RunConfig, CONFIG)
    run(config, small_blocks, tmp_path / "whole")
    lines = [line for line in read_metrics(tmp_path / "whole") if "meta" in line]
    assert ["hypergradient" in line["meta"] for line in lines] == [False, True, True]  # at step 0 nothing was made
    with pytest.raises(KilledError):
        run(config, small_blocks, tmp_path / "killed", must_save=killed_at(6))  # saved at 4, before the update of 4
    assert run(config, small_blocks, tmp_path / "killed")["resumed_at"] == 4
    mixtures = [
        [json.dumps(line["mixture"]) for line in read_metrics(tmp_path / name) if "mixture" in line]
        for name in ("whole", "killed")
    ]
    assert mixtures[0] == mixtures[1]
    ours, theirs = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_it_does_not_follow_is_refused():
    for changed, says in (
        ({"meta": {"lookahead": {"inner_steps": 2}}}, "inner_steps=1"),
        ({"meta": {"rules": {"masks": {"rule": "mask_scores"}}}, "masks": {}}, "mixture alone"),
    ):
        with pytest.raises(Exception, match=says):
            load_settings(RunConfig, merge(CONFIG, changed))
