"""The reference steps are right themselves: the published vectors and invariants (MetaLMO specification 1.21), and the
soft step's second-order gradient against central differences of everything from the teacher's weights to the query."""

import copy

import pytest
import torch
import torch.nn.functional as F
from metalmo_reference import (
    PAD,
    Batch,
    Settings,
    auxiliary_loss,
    get_loss,
    hard_step,
    inverse_power,
    labelled_loss,
    soft_step,
    teacher_loss,
)
from torch import nn

from mlpt.data.vocabulary import Vocabulary
from mlpt.models import pairs
from mlpt.models.teacher import NetworkConfig, Pair, build_student, build_teacher
from mlpt.objectives.counted_masking import CountedMaskingConfig, mask_counted

VOCABULARY = Vocabulary(size=50, pad=PAD, mask=1, sep=2, cls=3, unk=1, extra=(4, 5))
SIZES = {"hidden_size": 8, "heads": 2, "intermediate_size": 16, "layers": 2, "positions": 10}
STILL = {"dropout": 0.0, "attention_dropout": 0.0}


def networks(dtype=torch.float32, may_write_padding=True, **settings):
    config = NetworkConfig(**(SIZES | settings))
    student = build_student(config, VOCABULARY, 0).to(dtype)
    teacher = build_teacher(config, VOCABULARY, 1, may_write_padding).to(dtype)
    with torch.no_grad():  # starting weights of 0.02 would make all gradients small
        for parameter in (*student.parameters(), *teacher.parameters()):
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return student, teacher


def adamw(network, lr=0.01, warm=3):
    """AdamW as published, its moments warm from a few steps on other losses."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    for step in range(warm):
        optimizer.zero_grad()
        tokens = torch.randint(6, 50, (3, 10), generator=torch.Generator().manual_seed(step))
        F.cross_entropy(network(tokens).flatten(0, 1), tokens.roll(1, 1).flatten()).backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def batch():
    generator = torch.Generator().manual_seed(7)
    text = torch.randint(6, 50, (3, 10), generator=generator)
    text[:, 0], text[1, 6:] = 3, PAD
    masked, labels = mask_counted(text, VOCABULARY, generator, CountedMaskingConfig(probability=0.4), first=4)
    labelled = []
    for _ in range(2):
        inputs = torch.randint(6, 50, (2, 4), generator=generator)
        inputs[:, 0], inputs[1, 3:] = 5, PAD
        labelled.append((inputs, torch.where(inputs == PAD, PAD, torch.tensor([[2], [5]]))))
    return Batch(text, masked, labels, *labelled)


def drawing(seed=0, tokens=None):
    text = batch().text if tokens is None else tokens
    return lambda heads: pairs.draw_pair(Pair(*heads), text, PAD, torch.Generator().manual_seed(seed))


def flat(tensors):
    return torch.cat([one.flatten() for one in tensors])


SCORES = torch.tensor([[[2.0, -2, 0], [-2, 0, 2]], [[1, 1, 1], [1, 2, 3]]])
TARGETS = torch.tensor([[1, 2], [0, 2]])
MASKED = torch.tensor([[False, True], [False, False]])


@pytest.mark.parametrize("targets", [TARGETS, F.one_hot(TARGETS, 3).float()], ids=["hard", "soft"])
def test_get_loss_is_the_published_vector(targets):
    picks = [(SCORES[0, 0], 1), (SCORES[1, 0], 0), (SCORES[1, 1], 2)]
    expected = sum(-row.log_softmax(0)[pick] for row, pick in picks) / 3
    assert get_loss(SCORES, targets, MASKED).item() == pytest.approx(expected.item())


def test_the_house_computes_the_references_losses():
    student, teacher = networks(**STILL)
    data = batch()
    heads = teacher(data.text, data.text != PAD)
    x, y = drawing()(heads)
    padding = data.text == PAD
    ours = pairs.pair_loss(Pair(*heads), Pair(x, y), Pair(~padding, ~padding))
    assert ours.item() == pytest.approx(teacher_loss(heads, x, y, padding, padding).item())
    ours = pairs.auxiliary_loss(teacher, data.text, data.masked, data.labels, PAD)
    assert ours.item() == pytest.approx(auxiliary_loss(teacher, data).item())
    for name, by_inputs in (("inputs", True), ("labels", False)):
        inputs, labels = data.masked, data.labels
        keep = pairs.counted_positions(inputs, labels, PAD, by_inputs)
        ours = pairs.token_cross_entropy(student(inputs, inputs != PAD), labels, keep)
        theirs = labelled_loss(student, inputs, labels, Settings(query_padding=name))
        assert ours.item() == pytest.approx(theirs.item())


def test_a_labelled_loss_counts_positions_as_the_published_vector_says():
    # ML-1: five targets by the padding of the inputs, one by that of the labels.
    student, _ = networks(**STILL)
    inputs, labels = torch.tensor([[4, 1, 9, 10, 2, 0]]), torch.tensor([[0, 8, 0, 0, 0, 0]])
    logs = student(inputs, inputs != PAD).log_softmax(-1)[0]
    published = -(logs[0, 0] + logs[1, 8] + logs[2, 0] + logs[3, 0] + logs[4, 0]) / 5
    assert labelled_loss(student, inputs, labels, Settings()).item() == pytest.approx(published.item())
    fixed = labelled_loss(student, inputs, labels, Settings(query_padding="labels"))
    assert fixed.item() == pytest.approx(-logs[1, 8].item())


def test_the_hard_step_keeps_its_invariants():
    student, teacher = networks()
    optimizer, data = adamw(student), batch()
    before = [one.detach().clone() for one in student.parameters()]
    torch.manual_seed(0)
    found = hard_step(student, teacher, optimizer, data, drawing(), Settings(accumulation=4))
    # The student stands at theta1, one AdamW step from theta0.
    now = list(student.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, found.theta0, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(now, found.theta1, strict=True))
    # h is the cosine of delta = theta0 - theta1 and the clipped gradient of the query.
    delta = [one - other for one, other in zip(found.theta0, found.theta1, strict=True)]
    cosine = F.cosine_similarity(flat(delta), flat(found.query_gradient), dim=0)
    assert found.h.item() == pytest.approx(cosine.item(), abs=1e-7)
    assert flat(found.query_gradient).norm() <= 5.0 + 1e-5
    # A scaled loss of the query is a scaled gradient: h does not change.
    scaled = F.cosine_similarity(flat(delta), 100 * flat(found.query_gradient), dim=0)
    assert scaled.item() == pytest.approx(found.h.item(), abs=1e-6)
    assert found.applied
    assert all(one.grad is None or not one.grad.any() for one in now)


def test_the_pseudo_step_is_torchs_adamw_on_the_clipped_gradient():
    student, teacher = networks(**STILL)
    twin, _ = networks(**STILL)
    data, settings = batch(), Settings(max_norm=0.05)
    found = hard_step(student, teacher, adamw(student), data, drawing(), settings)
    optimizer = adamw(twin)
    x, y = drawing()(teacher(data.text, data.text != PAD))
    loss = F.cross_entropy(twin(x, x != PAD)[x != PAD], y[x != PAD])
    loss.backward()
    assert flat([one.grad for one in twin.parameters()]).norm() > settings.max_norm
    nn.utils.clip_grad_norm_(twin.parameters(), settings.max_norm)
    optimizer.step()
    torch.testing.assert_close(flat(found.theta1), flat(twin.parameters()))
    assert found.losses[0].item() == pytest.approx(loss.item())


def test_the_teachers_gradient_is_h_times_that_of_its_pair_and_the_auxiliary_one():
    student, teacher = networks(**STILL)
    data, settings = batch(), Settings(accumulation=4)
    found = hard_step(student, teacher, adamw(student), data, drawing(), settings)
    x, y = drawing()(teacher(data.text, data.text != PAD))
    padding = data.text == PAD
    words = list(teacher.parameters())
    loss = teacher_loss(teacher(data.text, data.text != PAD), x, y, padding, padding) / 4
    expected = torch.autograd.grad(loss, words)
    torch.testing.assert_close(flat(found.teacher_gradient), flat(expected))
    auxiliary = torch.autograd.grad(auxiliary_loss(teacher, data) / 4, words)
    total = found.h * flat(expected) + flat(auxiliary)
    torch.testing.assert_close(flat(one.grad for one in words), total)


def test_a_cosine_that_is_no_number_is_skipped():
    student, teacher = networks(**STILL)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0)  # delta is zero: 0 / 0
    found = hard_step(student, teacher, optimizer, batch(), drawing(), Settings())
    assert found.h.isnan()
    assert not found.applied
    words = list(teacher.parameters())
    expected = torch.autograd.grad(auxiliary_loss(teacher, batch()), words)
    torch.testing.assert_close(flat(one.grad for one in words), flat(expected))


def test_a_helpful_pair_becomes_likelier():
    # The query is the pair itself at the pseudo step's weights: its gradient points along delta, so h > 0, and a step
    # down the teacher's gradient raises the probability of the sample.
    student, teacher = networks(**STILL)
    data = batch()
    x, y = drawing()(teacher(data.text, data.text != PAD))
    data.support = data.query = (x, y)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = hard_step(student, teacher, optimizer, data, drawing(), Settings(inner_lr=0.0))
    assert found.h > 0.5
    padding = data.text == PAD
    with torch.no_grad():
        before = teacher_loss(teacher(data.text, data.text != PAD), x, y, padding, padding)
        for word, gradient in zip(teacher.parameters(), found.teacher_gradient, strict=True):
            word -= 1e-3 * found.h * gradient
        assert teacher_loss(teacher(data.text, data.text != PAD), x, y, padding, padding) < before


def test_the_soft_step_reaches_all_forty_tensors_of_the_teacher():
    student, teacher = networks()
    soft_step(student, teacher, adamw(student), batch(), Settings(meta_weight=100), auxiliary=False)
    words = list(teacher.parameters())
    assert len(words) == 40
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in words)


def test_with_a_fixed_target_the_target_head_has_no_gradient():
    student, teacher = networks()
    soft_step(student, teacher, adamw(student), batch(), Settings(fixed_target=True), auxiliary=False)
    targets = {id(one) for one in teacher.head_targets.parameters()}
    for one in teacher.parameters():
        has = one.grad is not None and bool(one.grad.abs().sum() > 0)
        assert has == (id(one) not in targets)


def test_the_soft_step_leaves_the_student_where_it_is_with_the_pseudo_gradient():
    student, teacher = networks(**STILL)
    optimizer, data = adamw(student), batch()
    before = [one.detach().clone() for one in student.parameters()]
    found = soft_step(student, teacher, optimizer, data, Settings(accumulation=4))
    assert all(torch.equal(one, other) for one, other in zip(before, student.parameters(), strict=True))
    padding = data.text == PAD
    heads = teacher(data.text, ~padding)
    student_loss = get_loss(student(heads[0].softmax(-1).detach(), ~padding), heads[1].softmax(-1).detach(), padding)
    expected = torch.autograd.grad(student_loss / 4, list(student.parameters()))
    torch.testing.assert_close(flat(one.grad for one in student.parameters()), flat(expected))
    # theta1 is what torch's AdamW makes of that gradient, unclipped; theta2 one plain step further.
    optimizer.step()
    torch.testing.assert_close(flat(found.theta1), flat(student.parameters()))
    loss = labelled_loss(student, *data.support, Settings())
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    moved = [one - 0.1 * gradient for one, gradient in zip(student.parameters(), gradients, strict=True)]
    torch.testing.assert_close(flat(found.theta2), flat(moved))


@pytest.mark.parametrize("fixed_target", [False, True])
def test_the_soft_gradient_agrees_with_central_differences_of_the_whole_path(fixed_target):
    student, teacher = networks(torch.float64, layers=1, **STILL)
    data = batch()
    settings = Settings(meta_weight=3.0, accumulation=2, fixed_target=fixed_target)
    optimizer = adamw(student, lr=0.01)
    start = {name: one.clone() for name, one in student.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    soft_step(student, teacher, optimizer, data, settings, auxiliary=False)
    gradients = {name: one.grad for name, one in teacher.named_parameters() if one.grad is not None}

    def query() -> float:
        """The weighted loss of the query by torch's own optimisers, from the start, with the teacher as it stands."""
        twin, _ = networks(torch.float64, layers=1, **STILL)
        twin.load_state_dict(start)
        own = torch.optim.AdamW(twin.parameters())
        own.load_state_dict(copy.deepcopy(state))
        own.zero_grad()
        padding = data.text == PAD
        with torch.no_grad():
            x, y = (one.softmax(-1) for one in teacher(data.text, ~padding))
        target = data.text if fixed_target else y
        (get_loss(twin(x, ~padding), target, padding) / settings.accumulation).backward()
        own.step()
        own.zero_grad()
        labelled_loss(twin, *data.support, settings).backward()
        torch.optim.SGD(twin.parameters(), lr=settings.inner_lr).step()
        loss = labelled_loss(twin, *data.query, settings)
        return (settings.meta_weight * loss / settings.accumulation).item()

    generator = torch.Generator().manual_seed(3)
    for name, parameter in teacher.named_parameters():
        if name not in gradients:
            continue
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        ends = []
        for sign in (1, -1):
            parameter.data += sign * 1e-5 * direction
            ends.append(query())
            parameter.data -= sign * 1e-5 * direction
        expected = (ends[0] - ends[1]) / 2e-5
        assert (gradients[name] * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-9), name


def test_the_schedule_has_the_published_factors():
    long = inverse_power(10_000)
    assert [long(index) for index in (0, 9_999, 39_999)] == pytest.approx([1e-6, 0.01, 0.005])
    short = inverse_power(10)
    assert [short(index) for index in (0, 9, 39)] == pytest.approx([0.0316228, 0.316228, 0.158114], rel=1e-5)
    ending = inverse_power(100, 1000)
    values = [ending(index) for index in (0, 99, 500, 999)]
    assert values == pytest.approx([0.000706101, 0.07061011, 0.01348021, 0.0], rel=1e-5)
