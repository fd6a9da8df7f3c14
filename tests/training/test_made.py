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


def step(forward, model, recorder, group, clip, number=7):
    """A step of training: the rank's passes, and what they leave."""
    mine = [slot for slot in range(len(SLOTS)) if slot % group.world == group.rank]
    with recorder.step(number, model):
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
    recorder.close(number, model, True, norm, clip)


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


def earlier(arm, weight, seed):
    """A pass of `arm` in an earlier step: what its hooks saw."""
    generator = torch.Generator().manual_seed(seed)
    model = Tied()
    gradients = [torch.randn(one.shape, generator=generator) for one in model.parameters()]
    return arm, weight, gradients


def passed(model, recorder, number, passes, sound):
    """A step whose passes have those gradients."""
    with recorder.step(number, model):
        for arm, weight, gradients in passes:
            with recorder.passes(arm, weight, SCALE):
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad = None
                    (parameter * gradient).sum().mul(weight * SCALE).backward()
    recorder.close(number, model, sound, torch.tensor(1.0), 0.0)


def test_gradients_are_averaged_over_the_last_steps_but_for_those_left_out():
    model, recorder = Tied(), GradientRecorder(4, Group(), steps=3)
    first, second, third = earlier("a", 0.5, 0), earlier("a", 0.25, 1), earlier("b", 1.0, 2)
    nowhere, broken = earlier("a", 1.0, 3), earlier("b", 1.0, 4)
    passed(model, recorder, 4, [nowhere], sound=True)  # four steps before the update of step 8
    assert not recorder.state()
    passed(model, recorder, 5, [first], sound=True)
    passed(model, recorder, 6, [broken], sound=False)
    again = GradientRecorder(4, Group(), steps=3)
    again.load_state(recorder.state())
    for one in (recorder, again):
        assert one.kept is None
        passed(model, one, 7, [second, third], sound=True)
        mean = sum(weight * nn.utils.parameters_to_vector(each) for _, weight, each in (first, second)) / 0.75
        assert set(one.kept.arms) == {"a", "b"}
        for arm, expected in {"a": mean, "b": nn.utils.parameters_to_vector(third[2])}.items():
            torch.testing.assert_close(torch.from_numpy(one.kept.arms[arm]), expected)
        passed(model, one, 8, [nowhere], sound=True)
        assert one.kept is None
        assert not one.state()
    passed(model, recorder, 9, [first], sound=True)
    passed(model, recorder, 10, [first], sound=True)
    passed(model, recorder, 11, [second], sound=False)  # there is no step to follow
    assert recorder.kept is None
    passed(model, recorder, 13, [third], sound=True)
    passed(model, recorder, 15, [third], sound=True)
    assert set(recorder.kept.arms) == {"b"}


def as_rank(group):
    model = Tied()
    wrapped = DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=True)
    recorder = GradientRecorder(8, group)
    step(wrapped, model, recorder, group, clip=0.1)
    assert (recorder.kept is not None) == group.leads
    if group.leads:
        check(recorder.kept, clip=0.1)
    averaging = GradientRecorder(8, group, steps=2)
    for number in (6, 7):  # the same passes twice
        model.zero_grad()
        step(wrapped, model, averaging, group, clip=0.1, number=number)
        assert bool(averaging.state()) == group.leads
    if group.leads:
        check(averaging.kept, clip=0.1)


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


@pytest.mark.parametrize(("averaged", "saved"), [(1, 4), (3, 4), (3, 3)], ids=["one step", "three", "among the three"])
def test_a_run_resumed_between_the_step_and_the_update_goes_on_bit_for_bit(small_blocks, tmp_path, averaged, saved):
    changed = {"meta": {"lookahead": {"averaged_steps": averaged}}, "train": {"checkpoint_every": saved}}
    config = load_settings(RunConfig, merge(CONFIG, changed))
    run(config, small_blocks, tmp_path / "whole")
    lines = [line for line in read_metrics(tmp_path / "whole") if "meta" in line]
    assert ["hypergradient" in line["meta"] for line in lines] == [False, True, True]  # at step 0 nothing was made
    with pytest.raises(KilledError):
        run(config, small_blocks, tmp_path / "killed", must_save=killed_at(saved + 1))  # saved before the update of 4
    assert run(config, small_blocks, tmp_path / "killed")["resumed_at"] == saved
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
        ({"meta": {"lookahead": {"averaged_steps": 5}}}, "cannot exceed interval"),
        ({"meta": {"lookahead": {"averaged_steps": 2, "engine": "one_step"}}}, "engine=alignment"),
    ):
        with pytest.raises(Exception, match=says):
            load_settings(RunConfig, merge(CONFIG, changed))
