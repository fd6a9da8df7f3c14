"""Students and teachers trained at once take the published steps, each on its own batch."""

import copy

import pytest
import torch
from metalmo_reference import Batch, Settings, end_of_accumulation, hard_step, soft_step

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.masker import draw_loss
from mlpt.models.pairs import draw_tokens
from mlpt.models.teacher import NetworkConfig, build_student, build_teacher
from mlpt.objectives.counted_masking import CountedMaskingConfig, mask_counted
from mlpt.training.many_maskers import ManyMaskers, MaskStep
from mlpt.training.many_teachers import FIGURES, Labelled, ManyTaught, Step, Taught, draw

VOCABULARY = Vocabulary(size=40, pad=0, mask=1, sep=2, cls=3, unk=1, extra=(4, 5))
SIZES = NetworkConfig(
    hidden_size=8,
    heads=2,
    intermediate_size=16,
    layers=1,
    positions=10,
    dropout=0,
    attention_dropout=0,
    attention="eager",
)
MODELS, ROWS, RATE = 2, 3, 0.01
MASKED = 4


def networks(build):
    found = [build(SIZES, VOCABULARY, seed) for seed in range(MODELS)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # starting weights of 0.02 would make all gradients small
        for one in found:
            for parameter in one.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return [one.double() for one in found]


def labelled(generator):
    tokens = torch.randint(6, 40, (MODELS, ROWS, 4), generator=generator)
    tokens[:, 1, 3:] = 0
    classes = torch.randint(0, 2, (MODELS, ROWS, 1), generator=generator) * 3 + 2
    at = torch.arange(4).expand(MODELS, ROWS, 4).contiguous()
    return Labelled(tokens, at, torch.where(tokens == 0, 0, classes))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    text = torch.randint(6, 40, (MODELS * ROWS, 10), generator=generator)
    text[:, 0], text[1, 6:] = 3, 0
    how = CountedMaskingConfig(probability=0.4)
    masked, labels = mask_counted(text, VOCABULARY, generator, how, first=4)
    parts = [one.view(MODELS, ROWS, 10) for one in (text, masked, labels)]
    noise = torch.rand((MODELS, 2, ROWS, 10), generator=generator)
    return Step(*parts, noise, labelled(generator), labelled(generator))


def of_model(batch, number):
    rows = [(one.tokens[number], one.labels[number]) for one in (batch.support, batch.query)]
    return Batch(batch.text[number], batch.masked[number], batch.labels[number], *rows)


def adamw(network):
    return torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)


def flat(network):
    return torch.cat([one.detach().flatten() for one in network.parameters()])


@pytest.mark.parametrize(("rule", "writes"), [("hard", "pairs"), ("soft", "pairs"), ("soft", "inputs")])
def test_students_and_teachers_end_where_the_published_steps_end(rule, writes):
    students, teachers = networks(build_student), networks(build_teacher)
    alone = [(copy.deepcopy(one), copy.deepcopy(other)) for one, other in zip(students, teachers, strict=True)]
    optimizers = [(adamw(one), adamw(other)) for one, other in alone]
    how = Taught(rule, writes, meta_weight=1.0 if rule == "hard" else 30.0, max_norm=0.5)
    together = ManyTaught(students, teachers, how, VOCABULARY.mask, "plain")
    settings = Settings(
        max_norm=0.5, meta_weight=how.meta_weight, query_padding="labels", fixed_target=writes == "inputs"
    )
    for step in range(3):
        rows = batch(step)
        found = together.step(rows, RATE, seed=step)
        for number, ((student, teacher), (of_student, of_teacher)) in enumerate(zip(alone, optimizers, strict=True)):
            mine, text = of_model(rows, number), rows.text[number]
            if rule == "hard":

                def drawing(heads, noise=rows.noise[number], text=text):
                    return [torch.where(text != 0, draw(one, noise[n]), 0) for n, one in enumerate(heads)]

                expected = hard_step(student, teacher, of_student, mine, drawing, settings)
                assert found[number, FIGURES.index("h")].item() == pytest.approx(expected.h.item(), abs=1e-5)
            else:
                expected = soft_step(student, teacher, of_student, mine, settings)
                end_of_accumulation(student, of_student, settings.max_norm)
            end_of_accumulation(teacher, of_teacher, settings.max_norm)
            told = [found[number, place].item() for place in range(3)]
            assert told == pytest.approx([one.item() for one in expected.losses], rel=1e-4)
    for number, (student, teacher) in enumerate(alone):
        torch.testing.assert_close(together.students[number], flat(student), atol=5e-6, rtol=1e-4)
        torch.testing.assert_close(together.teachers[number], flat(teacher), atol=5e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["hard", "soft"])
def test_a_recorded_step_gives_what_a_plain_one_gives(rule):
    ends = []
    for mode in ("plain", "recorded"):
        how = Taught(rule, entropy=0.1, inner_steps=2 if rule == "soft" else 1, support_steps=2)
        many = ManyTaught(networks(build_student), networks(build_teacher), how, VOCABULARY.mask, mode)
        for step in range(2):
            many.step(batch(step), RATE, seed=step)
        ends.append(torch.cat([many.students, many.teachers], dim=1))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-4)


def test_the_same_noise_draws_the_same_tokens_as_the_houses_sampler():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(1)).masked_fill(
        torch.arange(30) == 0, -torch.inf
    )
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(draw(logits, uniform), draw_tokens(logits, torch.Generator().manual_seed(2)))


def test_more_inner_steps_and_an_entropy_bonus_change_what_the_teacher_learns():
    ends = []
    for how in (
        Taught("soft"),
        Taught("soft", inner_steps=3),
        Taught("soft", support_steps=3),
        Taught("soft", entropy=1.0),
    ):
        many = ManyTaught(networks(build_student), networks(build_teacher), how, VOCABULARY.mask, "plain")
        many.step(batch(0), RATE, seed=0)
        many.step(batch(1), RATE, seed=1)
        ends.append(many.teachers)
    assert all(not torch.equal(ends[0], other) for other in ends[1:])


def mask_batch(step):
    generator = torch.Generator().manual_seed(step)
    text = torch.randint(6, 40, (MODELS, ROWS, 10), generator=generator)
    random = torch.randint(6, 40, text.shape, generator=generator)
    counts = torch.full((MODELS, ROWS), 3)
    fate = torch.rand(text.shape, generator=generator)
    among = torch.ones_like(text, dtype=torch.bool)
    return MaskStep(text, random, among, counts, fate, labelled(generator), labelled(generator))


def test_a_maskers_step_is_h_times_the_gradient_of_its_draw(monkeypatch):
    """Its first AdamW step has the size of its rate and the sign of the gradient."""
    how = Taught("hard")
    many = ManyMaskers(networks(build_student), VOCABULARY.size, how, VOCABULARY.mask, 0.02, MASKED, "plain")
    seen = []
    monkeypatch.setattr("mlpt.training.many_maskers.draw_loss", lambda *args: seen.append(args[2]) or draw_loss(*args))
    rows = mask_batch(0)
    figures = many.step(rows, RATE, seed=5)
    for number in range(MODELS):
        table = torch.zeros(VOCABULARY.size, requires_grad=True)
        turns = seen[number]
        assert ((turns >= 0).sum(1) == 3).all()
        h = figures[number, FIGURES.index("h")]
        (gradient,) = torch.autograd.grad(h * draw_loss(table[rows.text[number]], rows.among[number], turns), table)
        clear = gradient.abs() > 1e-4  # where eps does not matter
        assert clear.any()
        moved = many.teachers[number]
        torch.testing.assert_close(moved[clear], -0.02 * gradient[clear].sign(), atol=2e-3, rtol=0)
        assert (moved[gradient == 0] == 0).all()
