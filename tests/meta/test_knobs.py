"""Rule `hypergradient` of the knobs: the score function by enumeration, whole look-aheads against plain training."""

import copy
import itertools

import numpy as np
import pytest
import torch
from killing import KilledError, killed_at
from test_requestion import config_with, run, told

from mlpt.config import RunConfig
from mlpt.data.batch import Batch
from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.joint_lookahead import LookAhead, LookaheadConfig
from mlpt.meta.policy import Policy
from mlpt.meta.rules import make_rules, rule_config
from mlpt.objectives.base import Inputs
from mlpt.objectives.fresh import Fresh
from mlpt.objectives.knobs import Choice
from mlpt.randomness import torch_generator
from mlpt.run.build import arms_in, build_model, open_sources
from mlpt.settings import load_settings, merge
from mlpt.training.optimizer import make_optimizer

SMOOTH = {"kind": "token", "weight": 0.2}
KNOBS = {
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "dropout": 0},
    "objectives": {"mlm": {"smoothing": SMOOTH}},
    "meta": {
        "interval": 4,
        "lag": 2,
        "lookahead": {"start": 4},
        "rules": {"mixture": {"rule": "uniform"}, "knobs": {}},
    },
    "train": {"steps": 14, "batch_size": 8, "log_every": 1, "evaluate_batches": 2, "checkpoint_every": 4},
    "report": {"tensorboard": False},
}


def knobs_with(*, rule=None, **changes) -> RunConfig:
    knobs = {"rule": "hypergradient", "learn": ["smoothing"], **(rule or {})}
    return load_settings(RunConfig, merge(merge(KNOBS, {"meta": {"rules": {"knobs": knobs}}}), changes))


# ---------------------------------------------------------------- the score function, by enumeration of all masks


def every_choice(open_, above):
    """All masks of a row that chance may draw."""
    places = open_[0].nonzero().squeeze(1).tolist()
    for bits in itertools.product([False, True], repeat=len(places)):
        drawn = torch.zeros_like(open_)
        drawn[0, places] = torch.tensor(bits)
        yield Choice(drawn, open_, above)


@pytest.mark.parametrize("tempered", [False, True])
def test_the_chances_of_all_masks_sum_to_one_and_the_ratio_has_the_derivative_of_the_mean(tempered):
    """E[f] = sum_m P(m) f(m) for any f: by enumeration, its derivative is that of the mean of ratio(m) f(m)."""
    open_ = torch.tensor([[False, True, True, False, True]])
    above = torch.tensor([[0.0, 0.7, -0.4, 0.0, 2.0]], dtype=torch.float64) if tempered else None
    rate, temperature = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.35, 0.8))
    losses = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def chance(drawn):  # written out position by position
        product = torch.ones((), dtype=torch.float64)
        for place in (1, 2, 4):
            p = rate if above is None else rate / (1 + torch.exp(-above[0, place] / temperature))
            product = product * (p if drawn[0, place] else 1 - p)
        return product

    choices = list(every_choice(open_, above))
    exact = torch.stack([chance(one.drawn) for one in choices])
    assert float(exact.sum().detach()) == pytest.approx(1, abs=1e-12)
    found = torch.cat([one.log_probability(rate, temperature) for one in choices])
    torch.testing.assert_close(found, exact.log())
    estimated = sum(
        exact[place].detach() * one.ratio(rate, temperature)[0] * losses[place] for place, one in enumerate(choices)
    )
    leaves = [rate, temperature] if tempered else [rate]
    expected = torch.autograd.grad((exact * losses).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(estimated, leaves), expected)
    assert all(float(choice.ratio(rate, temperature)[0].detach()) == 1.0 for choice in choices)


def test_log_chances_pass_gradcheck():
    open_ = torch.tensor([[True, True, False], [True, False, True]])
    above = torch.tensor([[0.5, -1.0, 9.0], [2.0, 9.0, 0.1]], dtype=torch.float64)
    choice = Choice(torch.tensor([[True, False, False], [False, False, True]]), open_, above)
    leaves = tuple(torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.4, 0.7))
    assert torch.autograd.gradcheck(choice.log_probability, leaves)


# ---------------------------------------------------------------- what the objectives do with them


def test_a_turned_rate_is_that_of_training_texts_alone(small_blocks):
    config = knobs_with(rule={"learn": ["rate"]}, objectives={"mlm": {"probability": 0.15}})
    sources = open_sources(config, small_blocks)
    mlm = build_model(config, sources).objectives["mlm"]
    batch = sources.train.batch(np.arange(60))
    ordinary = int((~mlm.vocabulary.is_special(batch.tokens)).sum())

    def share(split):
        inputs = mlm.corrupt(Batch(batch.tokens, batch.rows, split), torch_generator(0, "mlm"))
        return len(inputs.positions) / ordinary

    plain = mlm.corrupt(batch, torch_generator(0, "mlm"))
    mlm.turn(("rate",), {"rate": 0.45})
    assert share("train") == pytest.approx(0.45, abs=0.04)
    assert share("dev") == pytest.approx(0.15, abs=0.03)
    mlm.turn(("rate",), {})
    again = mlm.corrupt(batch, torch_generator(0, "mlm"))
    assert torch.equal(again.input_ids, plain.input_ids)
    assert torch.equal(again.choice.drawn.view(-1).nonzero().squeeze(1), again.positions)


def test_a_temperature_draws_positions_by_how_far_they_are_above_the_threshold(small_blocks):
    hard = {"temperature": 0.5, "probability": 0.9, "fallback": None}
    config = config_with(objectives={"mlm": None, "guided": {"hard": hard}})
    sources = open_sources(config, small_blocks)
    guided = build_model(config, sources).objectives["guided"]
    batch = sources.train.batch(np.arange(100))
    scores = torch.full(batch.tokens.shape, 1.0, dtype=torch.float16)
    scores[:, ::2] = 2.0
    guided.obey(Fresh(np.arange(100), scores, 1.5).part())
    inputs = guided.corrupt(batch, torch_generator(0, "guided"))
    chosen = torch.zeros(batch.tokens.numel(), dtype=torch.bool)
    chosen[inputs.positions] = True
    chosen, ordinary = chosen.view(batch.tokens.shape), ~guided.vocabulary.is_special(batch.tokens)
    for first, above in ((0, 0.5), (1, -0.5)):
        columns = slice(first, None, 2)
        found = chosen[:, columns].sum() / ordinary[:, columns].sum()
        assert float(found) == pytest.approx(0.9 / (1 + np.exp(-above / 0.5)), abs=0.05)
    assert inputs.choice is None
    guided.turn(("temperature",), {})
    again = guided.corrupt(batch, torch_generator(0, "guided"))
    assert torch.equal(again.positions, inputs.positions)
    assert torch.equal(again.choice.drawn.view(-1).nonzero().squeeze(1), again.positions)


# ---------------------------------------------------------------- the whole look-ahead


def context_of(config, blocks):
    sources = open_sources(config, blocks)
    torch.manual_seed(0)
    model = build_model(config, sources).double()
    optimizer = make_optimizer(model, config.train.optimizer)
    for step in range(3):  # warm moments
        inputs = model.objectives["mlm"].corrupt(
            Batch(*sources.train.batch(np.arange(8) + 8 * step).__dict__.values()), torch_generator(step, "warm")
        )
        optimizer.zero_grad()
        model("mlm", inputs).backward()
        optimizer.step()
    arms = arms_in(config, sources)
    return MetaContext(model.eval(), optimizer, arms.every, list(arms.trained), {"mlm": 1.0}, sources, 0, 8, step=4)


def gradient_of(rule, part, context):
    look = LookAhead(LookaheadConfig(engine="higher", start=0))
    return look.gradients(Policy(0, {"knobs": part}), {"knobs": rule.share(part, context)}, context)["knobs"]


def trained_on(context, rule, x, weights_of):
    """The held-out loss after one step of plain AdamW on the inner batch, with the knob at the outer variable x."""
    model, optimizer = copy.deepcopy((context.model, context.optimizer))
    inputs: Inputs = weights_of(context.train_inputs("mlm", 8, 0), x)
    optimizer.zero_grad()
    model("mlm", inputs).backward()
    optimizer.step()
    with torch.no_grad():
        return float(model("mlm", context.dev_inputs("mlm", 8, 0, 4, 4)))


@pytest.mark.parametrize("knob", ["smoothing", "rate"])
def test_the_gradient_of_a_knob_is_that_of_plain_training(small_blocks, knob):
    """By central differences of a real step; of the rate with the drawn masks' chances as row weights."""
    config = knobs_with(
        rule={"learn": [knob]},
        objectives={"mlm": {"smoothing": {"kind": "uniform", "weight": 0.2}}},
        train={"optimizer": {"lr": 3e-2, "eps": 1e-4}},
    )
    context = context_of(config, small_blocks)
    rule = make_rules(config.meta.rules, ["mlm"])["knobs"]
    part = rule.first()
    rule.apply(part, context.model)
    found = float(gradient_of(rule, part, context)[f"knobs.{knob}"])
    (low, high), start = rule.config.range_of(knob), {"smoothing": 0.2, "rate": 0.15}[knob]
    x0 = float(np.log((start - low) / (high - start)))

    def at(inputs, x):
        value = low + (high - low) / (1 + np.exp(-x))
        if knob == "smoothing":
            return Inputs(**{**vars(inputs), "smoothing": torch.tensor(value, dtype=torch.float64)})
        drawn, open_ = inputs.choice.drawn.sum(1).double(), inputs.choice.open.sum(1).double()
        change = drawn * np.log(value / start) + (open_ - drawn) * np.log((1 - value) / (1 - start))
        return Inputs(**{**vars(inputs), "weights": change.exp()[inputs.positions // inputs.input_ids.shape[1]]})

    h = 0.1  # losses are float32: a smaller one drowns in their rounding
    expected = (trained_on(context, rule, x0 + h, at) - trained_on(context, rule, x0 - h, at)) / (2 * h)
    assert abs(expected) > 1e-4
    assert found == pytest.approx(expected, rel=2e-2)


def test_a_step_goes_down_the_gradient_and_stays_in_the_range(small_blocks):
    config = knobs_with(rule={"lr": 5.0, "ranges": {"smoothing": [0.1, 0.3]}})
    context = context_of(config, small_blocks)
    rule = make_rules(config.meta.rules, ["mlm"])["knobs"]
    part = rule.first()
    rule.apply(part, context.model)
    for sign, least, most in ((1.0, 0.1, 0.12), (-1.0, 0.28, 0.3)):
        other = make_rules(config.meta.rules, ["mlm"])["knobs"]
        moved = other.descend(part, {"knobs.smoothing": torch.tensor(sign)}, context)
        assert least < moved.values["smoothing"] < most
    assert context.model.objectives["mlm"].knobs == {}  # until it is adopted
    rule.apply(moved, context.model)
    inputs = context.train_inputs("mlm", 8, 0)
    assert float(inputs.smoothing) == pytest.approx(moved.values["smoothing"])


@pytest.mark.parametrize("step", [7, 11])
def test_a_killed_run_with_learned_knobs_goes_on_bit_for_bit(small_blocks, tmp_path, step):
    config = knobs_with(rule={"learn": ["smoothing", "rate"]})
    run(config, small_blocks, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(config, small_blocks, tmp_path / "killed", must_save=killed_at(step))
    run(config, small_blocks, tmp_path / "killed")
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    policies = [(tmp_path / name / "policies" / "mixture.json").read_text() for name in ("whole", "killed")]
    assert policies[0] == policies[1]
    assert '"knobs": {"smoothing": ' in policies[0]
    assert '"knobs": {"smoothing": 0.2,' not in policies[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objectives": {"mlm": {"smoothing": None}}}, "set objectives.mlm.smoothing.kind"),
        ({"rule": {"learn": ["temperature"]}}, "that has temperature; there are 0"),
        ({"rule": {"objective": "cse"}}, "'cse' that has smoothing; there are 0"),
        ({"rule": {"ranges": {"smoothing": [0.3, 0.5]}}}, "wants it inside 0.3 to 0.5"),
        ({"rule": {"ranges": {"smoothing": [0.5, 0.3]}}}, "0 <= low < high <= 1"),
        ({"meta": {"lookahead": {"engine": "one_step"}}}, "set meta.lookahead.engine=higher"),
        ({"meta": {"lookahead": {"engine": "finite_difference"}}}, "smoothing.reference=frozen"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_line(changes, says):
    if changes.get("objectives"):
        changes = {"objectives": {"mlm": {"smoothing": {"kind": "none"}}}}
    with pytest.raises(UserError) as error:
        knobs_with(**changes)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bare_name_is_the_rule():
    assert rule_config("knobs", "hypergradient").learn == ("smoothing",)
