"""What rules of the teacher compute in one update, in float64: against the reference steps and central differences."""

import copy
from types import SimpleNamespace

import pytest
import torch
from metalmo_reference import Batch as Published
from metalmo_reference import Settings, hard_step, soft_step

from mlpt.data.batch import Arm, Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.meta.judges import Judgement, Weighted, labelled_inputs
from mlpt.meta.policy import Planned
from mlpt.meta.rules.teacher import Coming
from mlpt.meta.rules.teacher_hard import TeacherHard
from mlpt.meta.rules.teacher_soft import TeacherSoft
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.models.pairs import draw_pair
from mlpt.models.teacher import NetworkConfig, Pair, build_student
from mlpt.models.writers import soft_inputs
from mlpt.objectives import make_objectives

VOCABULARY = Vocabulary(size=40, pad=0, mask=1, sep=2, cls=3, unk=1, extra=(4, 5))
SIZES = {"hidden_size": 8, "heads": 2, "intermediate_size": 16, "layers": 1}
NETWORK = {**SIZES, "dropout": 0.0, "attention_dropout": 0.0, "positions": 10}
ARMS = {name: Arm(name, name, "all") for name in ("teacher_made", "counted_mlm")}


def texts(seed, rows=3):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(6, 40, (rows, 10), generator=generator)
    tokens[:, 0], tokens[1, 6:] = 3, 0
    return tokens


def labelled(seed):
    tokens = texts(seed)
    labels = torch.where(tokens == 0, 0, torch.tensor([[2], [5], [2]]))
    return tokens, labels


def setting(architecture="metalmo", teacher="pairs", dtype=torch.float64):
    """A warm model and optimiser in a context, with the objective."""
    objectives = make_objectives(
        {"teacher_made": {"teacher": teacher, "network": NETWORK, "may_write_padding": True}, "counted_mlm": {}},
        VOCABULARY,
    )
    config = ModelConfig.model_validate({"architecture": architecture, **SIZES, "dropout": 0})
    model = build_encoder(config, VOCABULARY, objectives, 10, 0).to(dtype).eval()
    network = objectives["teacher_made"].writer.network.to(dtype)
    with torch.no_grad():  # starting weights of 0.02 would make all gradients small
        for parameter in (*model.parameters(), *network.parameters()):
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    for step in range(3):
        optimizer.zero_grad()
        model("teacher_made", labelled_inputs(texts(step), texts(step + 50), 0)).backward()
        optimizer.step()
    optimizer.zero_grad()
    context = SimpleNamespace(model=model, optimizer=optimizer, arms=ARMS, step=0, seed=0)
    return context, objectives["teacher_made"]


def coming(seed, arm="teacher_made", weight=1.0):
    batch = Batch.of(texts(seed)).for_arm(arm)
    return Coming(Planned(arm, 0, batch.rows, weight), batch, torch.Generator().manual_seed(9))


def judgement():
    sides = [[Weighted("teacher_made", labelled_inputs(*labelled(seed), 0), 1.0)] for seed in (21, 22)]
    return Judgement(*sides)


def published(context):
    """The same student as the reference takes it, and the reference's batch."""
    student = build_student(NetworkConfig(**NETWORK), VOCABULARY, 0).double()
    student.load_state_dict(context.model.backbone.state_dict())
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    places = {name: place for place, (name, _) in enumerate(context.model.backbone.named_parameters())}
    state = copy.deepcopy(context.optimizer.state_dict())
    state["state"] = {place: state["state"][places[name]] for place, (name, _) in enumerate(student.named_parameters())}
    optimizer.load_state_dict(state)
    data = Published(texts(11), texts(11), texts(11), labelled(21), labelled(22))
    return student, optimizer, data


def flat(tensors):
    return torch.cat([one.flatten() for one in tensors])


@pytest.mark.parametrize("teacher", ["pairs", "inputs"])
def test_the_soft_rule_has_the_published_gradient(teacher):
    context, made = setting(teacher=teacher)
    rule = TeacherSoft(TeacherSoft.Config(meta_weight=3.0), ["teacher_made"])
    found, _ = rule.meta_gradient(made, [coming(11)], judgement(), context, {})
    student, optimizer, data = published(context)
    network = made.writer.network
    settings = Settings(meta_weight=3.0, fixed_target=teacher == "inputs")
    soft_step(student, network, optimizer, data, settings, auxiliary=False)
    expected = [torch.zeros_like(one) if one.grad is None else one.grad for one in network.parameters()]
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-7, atol=1e-10)
    assert flat(found).norm() > 1e-4


def test_the_hard_rule_has_the_published_cosine_and_gradient():
    context, made = setting()
    before = [one.detach().clone() for one in context.model.parameters()]
    figures = {}
    rule = TeacherHard(TeacherHard.Config(), ["teacher_made"])
    found, _ = rule.meta_gradient(made, [coming(11)], judgement(), context, figures)
    assert all(torch.equal(one, other) for one, other in zip(before, context.model.parameters(), strict=True))
    student, optimizer, data = published(context)
    noise = torch.Generator().manual_seed(9)
    expected = hard_step(
        student,
        made.writer.network,
        optimizer,
        data,
        lambda heads: draw_pair(Pair(*heads), data.text, 0, noise),
        Settings(),
    )
    assert figures["h"] == pytest.approx(expected.h.item(), rel=1e-7)
    assert figures["dot"] == pytest.approx(expected.dot.item(), rel=1e-7)
    assert figures["sample_loss"] == pytest.approx(expected.pair_loss.item(), rel=1e-9)
    wanted = expected.h * flat(expected.teacher_gradient)
    torch.testing.assert_close(flat(found), wanted, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("clip", "max_norm"), [(5.0, 5.0), (0.05, 0.05), (0, 1e9)])
def test_the_hard_look_ahead_clips_as_published_or_not_at_all(clip, max_norm):
    """ML-13: clipping the support step moves the query's gradient, and so the cosine. (The soft one never clips.)"""
    context, made = setting()
    rule = TeacherHard(TeacherHard.Config(clip=clip, inner_lr=3.0), ["teacher_made"])
    rule.meta_gradient(made, [coming(11)], judgement(), context, figures := {})
    student, optimizer, data = published(context)
    noise = torch.Generator().manual_seed(9)
    draw = lambda heads: draw_pair(Pair(*heads), data.text, 0, noise)  # noqa: E731
    settings = Settings(max_norm=max_norm, inner_lr=3.0)
    expected = hard_step(student, made.writer.network, optimizer, data, draw, settings)
    assert figures["h"] == pytest.approx(expected.h.item(), rel=1e-6)


def test_a_fixed_target_and_the_judges_weight_are_of_the_hard_rule_too():
    # ML-7; published: of the soft one alone.
    found = {}
    for weight in (1.0, 3.0):
        context, made = setting(teacher="inputs")
        rule = TeacherHard(TeacherHard.Config(meta_weight=weight), ["teacher_made"])
        gradient, _ = rule.meta_gradient(made, [coming(11)], judgement(), context, {})
        named = dict(zip((name for name, _ in made.writer.network.named_parameters()), gradient, strict=True))
        assert not any(one.any() for name, one in named.items() if name.startswith("head_targets"))
        found[weight] = flat(gradient)
    assert found[1.0].norm() > 0
    torch.testing.assert_close(found[3.0], 3 * found[1.0])
    one = coming(11)
    inputs = made.corrupt(one.batch, one.noise)
    assert torch.equal(inputs.targets, one.batch.tokens.reshape(-1)[inputs.positions])


def test_a_baseline_is_taken_from_the_reward_and_follows_it():
    context, made = setting()
    rule = TeacherHard(TeacherHard.Config(baseline=0.75), ["teacher_made"])
    plain, kept = rule.meta_gradient(made, [coming(11)], judgement(), context, figures := {})
    assert kept.values["mean"] == figures["h"]
    rule.keep(type(kept)({"mean": figures["h"] - 0.5}))
    moved, kept = rule.meta_gradient(made, [coming(11)], judgement(), context, {})
    torch.testing.assert_close(flat(moved), flat(plain) * 0.5 / figures["h"])
    assert kept.values["mean"] == pytest.approx(figures["h"] - 0.375)


def test_a_cosine_that_is_no_number_is_skipped():
    context, made = setting()
    query = judgement().query[0]._replace(weight=float("nan"))
    rule = TeacherHard(TeacherHard.Config(), ["teacher_made"])
    found, _ = rule.meta_gradient(made, [coming(11)], Judgement([], [query]), context, figures := {})
    assert found == []
    assert figures["skipped_reward"]


@pytest.mark.parametrize("architecture", ["metalmo", "bert", "modernbert"])
def test_the_soft_gradient_of_a_mixed_step_agrees_with_central_differences(architecture):
    """Two arms in the step, by torch's own optimisers from the same state."""
    context, made = setting(architecture)
    model, network = context.model, made.writer.network
    step = [coming(11, weight=0.5), coming(12, "counted_mlm", 0.5)]
    rule = TeacherSoft(TeacherSoft.Config(inner_lr=0.05), ["teacher_made", "counted_mlm"])
    found, _ = rule.meta_gradient(made, step, judgement(), context, {})
    masked = model.objectives["counted_mlm"].corrupt(step[1].batch, torch.Generator().manual_seed(9))
    judged = judgement()

    def query():
        twin = copy.deepcopy(model)
        own = torch.optim.AdamW(twin.parameters())
        own.load_state_dict(copy.deepcopy(context.optimizer.state_dict()))
        own.zero_grad()
        tokens = step[0].batch.tokens
        with torch.no_grad():
            soft = soft_inputs(made.writer.soft(tokens), tokens, 0)
        (0.5 * twin("teacher_made", soft) + 0.5 * twin("counted_mlm", masked)).backward()
        own.step()
        own.zero_grad()
        twin("teacher_made", judged.support[0].inputs).backward()
        torch.optim.SGD(twin.parameters(), lr=0.05).step()
        return twin("teacher_made", judged.query[0].inputs).item()

    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(one.shape, dtype=torch.float64, generator=generator) for one in network.parameters()]
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for one, direction in zip(network.parameters(), directions, strict=True):
                one += sign * 1e-5 * direction
            ends.append(None)
        ends[-1] = query()
        with torch.no_grad():
            for one, direction in zip(network.parameters(), directions, strict=True):
                one -= sign * 1e-5 * direction
    numeric = (ends[0] - ends[1]) / 2e-5
    assert (flat(found) @ flat(directions)).item() == pytest.approx(numeric, rel=1e-4, abs=1e-8)


def test_both_engines_agree_over_three_steps_and_two_on_the_support_rows():
    context, made = setting()
    context.another = None
    found = []
    for engine in ("higher", "finite_difference"):
        config = TeacherSoft.Config(engine=engine, inner_steps=3, support_steps=2)
        rule = TeacherSoft(config, ["teacher_made"])
        rule.another = lambda objective, context, k: coming(30 + k)
        found.append(flat(rule.meta_gradient(made, [coming(11)], judgement(), context, {})[0]))
    assert (found[1] - found[0]).norm() < 1e-2 * found[0].norm()
