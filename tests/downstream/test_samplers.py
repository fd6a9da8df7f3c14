"""Task samplers: the published scores and lengths, and that every sampler gives the rows that it promises."""

import functools
import json
import operator
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mlpt.downstream.multitask.model import entropy
from mlpt.downstream.samplers import SAMPLERS, MtUncertainty, SamplerConfig, make_sampler, uncertainty
from mlpt.errors import UserError
from mlpt.meta.policy import Part, Policy

NAMES, SIZES, CLASSES, BATCH = ["cola", "mnli", "rte"], [20, 10, 7], [2, 3, 2], 4
LOGITS = [[0, 0], [2, 0], [0, 0, 0], [2, 0, 0], [3, 0], [10, 0]]  # two candidates of each task
ENTROPIES = np.array([entropy(torch.tensor([logits], dtype=torch.float64)).item() for logits in LOGITS])
TASKS = np.array([0, 0, 1, 1, 2, 2])


def sampler(rule: str, names=NAMES, sizes=SIZES, classes=CLASSES, batch=BATCH, seed=3, **settings):
    return make_sampler(SAMPLERS[rule].Config(**settings), names, sizes, classes, batch, seed)


def no_preference(rows) -> np.ndarray:
    return np.zeros(len(rows))


def test_the_codes_scores_are_the_published_ones():
    scores = uncertainty(ENTROPIES, TASKS, np.array(CLASSES)[TASKS], "code")
    np.testing.assert_allclose(scores, [0.95093, 0.50120, 0.99999, 0.60582, 0.04734, 0.000124], atol=5e-6)


def test_the_papers_scores_are_those_of_its_formula():
    scores = uncertainty(ENTROPIES, TASKS, np.array(CLASSES)[TASKS], "paper")
    np.testing.assert_allclose(scores, [1.1337, 0.5975, 1.1337, 0.6868, 0.3122, 0.0008], atol=5e-5)


@pytest.mark.parametrize(("score", "best"), [("code", [2, 0, 3]), ("paper", [0, 2, 3])])
def test_the_two_scores_rank_as_published(score, best):
    rows = [(int(task), 0) for task in TASKS]
    assert sampler("mt_uncertainty", score=score).ranking(rows, ENTROPIES)[:3].tolist() == best


@pytest.mark.parametrize(
    ("rule", "settings", "steps"),
    [
        ("proportional", {}, 10),
        ("uniform", {}, 10),
        ("mt_uncertainty", {}, 15),
        ("mt_uncertainty", {"epoch": "uniform"}, 3),
        ("mt_uncertainty", {"epoch_share": 3.0}, 45),
        ("sequential", {}, 5 + 3 + 2),
    ],
)
def test_an_epoch_has_the_published_length(rule, settings, steps):
    assert sampler(rule, **settings).steps_per_epoch == steps


def test_nine_glue_tasks_have_the_published_length():
    sizes = [8551, 392_702, 3668, 67_349, 5749, 363_846, 104_743, 2490, 635]
    names = ["cola", "mnli", "mrpc", "sst2", "stsb", "qqp", "qnli", "rte", "wnli"]
    classes = [2, 3, 2, 2, 1, 2, 2, 2, 2]
    assert sampler("mt_uncertainty", names, sizes, classes, batch=8).steps_per_epoch == 441_792
    assert sampler("mt_uncertainty", names, sizes, classes, batch=32).steps_per_epoch == 110_448


@pytest.mark.parametrize("rule", ["proportional", "sequential"])
def test_an_epoch_gives_every_row_once(rule):
    made = sampler(rule)
    for first in (0, made.steps_per_epoch):  # two epochs, in different orders
        rows = [row for step in range(made.steps_per_epoch) for row in made.batch(first + step)]
        assert sorted(rows) == sorted((task, row) for task, size in enumerate(SIZES) for row in range(size))


def test_sequential_takes_one_task_after_another():
    made = sampler("sequential")
    assert [{task for task, _ in made.batch(step)} for step in range(10)] == [{0}] * 5 + [{1}] * 3 + [{2}] * 2


def test_proportional_mixes_tasks_within_a_batch():
    made = sampler("proportional")
    assert max(len({task for task, _ in made.batch(step)}) for step in range(10)) > 1


@pytest.mark.parametrize(
    ("rule", "settings", "expected"),
    [
        ("uniform", {}, [1 / 3, 1 / 3, 1 / 3]),
        ("temperature", {"temperature": 1.0}, [20 / 37, 10 / 37, 7 / 37]),
        ("temperature", {"temperature": 2.0}, np.sqrt([20, 10, 7]) / np.sqrt([20, 10, 7]).sum()),
    ],
)
@pytest.mark.parametrize("draw", ["row", "step"])
def test_tasks_are_drawn_with_their_probabilities(rule, settings, expected, draw):
    made = sampler(rule, draw=draw, **settings)
    drawn = Counter(task for step in range(1000) for task, _ in made.batch(step))
    total = 1000 * BATCH
    independent = 1000 if draw == "step" else total
    for task, share in enumerate(expected):
        assert drawn[task] / total == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / independent))


def test_a_step_draw_fills_the_batch_from_one_task():
    made = sampler("uniform", draw="step")
    assert all(len({task for task, _ in made.batch(step)}) == 1 for step in range(20))


def test_mt_uncertainty_trains_on_the_most_uncertain_candidates():
    made = sampler("mt_uncertainty", seed=0)
    twin = sampler("mt_uncertainty", seed=0)
    rows = made.batch(0, lambda rows: np.array([row / 100 for _, row in rows]))
    candidates = twin.candidates()
    assert Counter(task for task, _ in candidates) == {0: 4, 1: 4, 2: 4}
    relative = sorted(((row / np.log(CLASSES[task]), (task, row)) for task, row in candidates), reverse=True)
    assert {row for _, row in relative[:4]} == set(rows)


def test_candidates_of_a_small_task_start_over_with_a_new_order():
    made = sampler("mt_uncertainty")
    seen = [[row for task, row in made.candidates() if task == 2] for _ in range(4)]
    assert [len(rows) for rows in seen] == [4, 3, 4, 3]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(7))


def test_fewer_candidates_than_a_batch_are_all_taken():
    made = sampler("mt_uncertainty", sizes=[1, 1, 1])
    assert sorted(made.batch(0, no_preference)) == [(0, 0), (1, 0), (2, 0)]


def stsb_scores(regression: str, names: list[str], classes: list[int]) -> np.ndarray:
    made = sampler("mt_uncertainty", names, [4] * len(names), classes, regression=regression)
    rows = [(task, rank) for task in range(len(names)) for rank in range(3 if names[task] == "stsb" else 2)]
    entropies = np.array([0.0 if classes[task] == 1 else 0.2 + 0.1 * rank for task, rank in rows])
    tasks = np.array([task for task, _ in rows])
    scores = uncertainty(entropies, tasks, np.array(classes)[tasks], "paper")
    return made._regression_scores(scores, tasks)


def test_stsb_takes_the_scores_of_mrpc_rank_by_rank():
    scores = stsb_scores("zero", ["stsb", "mrpc"], [1, 2])
    assert scores[:2].tolist() == scores[3:].tolist()
    assert scores[2] == 0  # a third row has no counterpart


@pytest.mark.parametrize(("regression", "expected"), [("zero", 0.0), ("mean", None)])
def test_a_regression_without_mrpc_scores_zero_as_published_or_the_mean(regression, expected):
    scores = stsb_scores(regression, ["stsb", "cola"], [1, 2])
    np.testing.assert_allclose(scores[:3], scores[3:].mean() if expected is None else expected)


def test_candidates_are_scored_once_for_as_many_steps_as_asked():
    made, calls = sampler("mt_uncertainty", rescore_every=3), []

    def score(rows):
        calls.append(list(rows))
        return np.array([row / 100 for _, row in rows])

    steps = [made.batch(step, score) for step in range(6)]
    assert len(calls) == 2
    assert sorted(functools.reduce(operator.iadd, steps[:3], [])) == sorted(
        calls[0]
    )  # three tasks, three steps: every candidate once
    best = sampler("mt_uncertainty").batch(0, score)
    assert steps[0] == best


def test_rescoring_less_often_than_there_are_candidates_is_refused():
    with pytest.raises(UserError, match="rescore_every=4"):
        sampler("mt_uncertainty", rescore_every=4)


def test_a_policy_decides_the_tasks_and_draws_are_counted():
    made = sampler("policy")
    for step in range(6):
        made.batch(step)
    assert sum(made.draws.values()) == 6
    made.adopt(Policy(1, {"mixture": Part({"cola": 0.0, "mnli": 0.0, "rte": 1.0})}))
    assert {task for step in range(6, 12) for task, _ in made.batch(step)} == {2}
    assert made.draws == {"cola": 0, "mnli": 0, "rte": 6}


@pytest.mark.parametrize("rule", list(SAMPLERS))
def test_a_resumed_sampler_gives_the_same_rows(rule):
    def score(rows):
        return np.array([(task * 7 + row * 3) % 5 / 10 for task, row in rows])

    settings = {"rescore_every": 2} if rule == "mt_uncertainty" else {}
    made = sampler(rule, **settings)
    for step in range(7):
        made.batch(step, score)
    state = json.loads(json.dumps(made.state()))
    expected = [made.batch(step, score) for step in range(7, 14)]
    resumed = sampler(rule, **settings)
    resumed.load_state(state)
    assert [resumed.batch(step, score) for step in range(7, 14)] == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 6), st.sampled_from(sorted(SAMPLERS)))
def test_every_batch_holds_rows_that_exist(sizes, batch, rule):
    names = [f"task{i}" for i in range(len(sizes))]
    made = sampler(rule, names, sizes, [2] * len(sizes), batch=batch)
    for step in range(5):
        rows = made.batch(step, no_preference)
        assert 0 < len(rows) <= batch
        assert all(0 <= row < sizes[task] for task, row in rows)


def test_an_empty_task_is_refused():
    with pytest.raises(UserError, match="at least one training row"):
        sampler("uniform", sizes=[3, 0, 2])


def test_the_rule_picks_the_sampler_and_an_unknown_one_is_an_error():
    adapter = TypeAdapter(SamplerConfig)
    assert isinstance(adapter.validate_python({"rule": "mt_uncertainty"}), MtUncertainty.Config)
    with pytest.raises(ValidationError):
        adapter.validate_python({"rule": "certainty"})
