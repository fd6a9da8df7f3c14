"""Points of a space over multi-task fine-tuning: configurations, budgets, and what is refused in one line."""

import pytest
import yaml
from ray import tune

from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.errors import UserError
from mlpt.settings import load_settings
from mlpt.tuning.multitask_trial import MultitaskJob
from mlpt.tuning.space import Space

JOB = MultitaskJob()
SPACE = Space(
    parameters={"optimizer.lr": tune.loguniform(1e-5, 1e-3)},
    metrics={"dev/mean": "max"},
    job="multitask",
    base={"tasks": ["docs_package", "docs_summary"], "conditional.max_length": 64, "batch_size": 16},
    tokens=100_000,
    trials=1,
    evaluations=4,
    name="mine",
)
MODEL = {"model": "some/model"}


def test_the_point_wins_over_the_user_and_the_user_over_the_space():
    overrides = MODEL | {"batch_size": 8, "optimizer": {"lr": 9.0}}
    config = JOB.config(SPACE, overrides, {"optimizer.lr": 0.5}, seed=7)
    assert (config.model, config.batch_size, config.optimizer.lr, config.seed) == ("some/model", 8, 0.5, 7)


def test_the_budget_counts_rows_as_full_and_is_cut_into_equal_parts():
    config = JOB.budgeted(JOB.config(SPACE, MODEL, {}, 0), SPACE, 64)
    spent = config.max_steps * 16 * 64
    assert config.max_steps == 4 * config.evaluate_every
    assert SPACE.tokens <= spent < SPACE.tokens + 4 * 16 * 64


def test_a_recipe_reads_back_as_the_winners_configuration():
    config = JOB.config(SPACE, MODEL, {"optimizer.lr": 3e-4}, 5)
    read = load_settings(MultitaskConfig, yaml.safe_load(JOB.recipe(config, SPACE, 64)))
    assert read == JOB.budgeted(config, SPACE, 64)


def test_a_folder_is_found_from_wherever_the_trial_runs(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert JOB.config(SPACE, {"model": "model"}, {}, 0).model == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        ({}, {}, "model=FOLDER"),
        (MODEL | {"runtime": {"num_workers": 2}}, {}, "one process each"),
        (MODEL | {"runtime": {"worker": 2}}, {}, "unknown setting 'runtime.worker'"),
        (MODEL, {"metrics": {"dev/sst2": "max"}}, "no trial reports 'dev/sst2'"),
        (MODEL, {"metrics": {"latency": "min"}, "scheduler": "none"}, "no trial reports 'latency'"),
        (MODEL, {"scheduler": "hyperband"}, "cannot be paused"),
    ],
)
def test_what_no_trial_could_do_is_refused(overrides, changes, message):
    with pytest.raises(UserError, match=message) as refused:
        accepted(SPACE.changed(**changes), overrides)
    assert "\n" not in str(refused.value)


def accepted(space, overrides):
    config = JOB.config(space, overrides, {}, 0)
    JOB.runtime(config, overrides)
    JOB.check(space, config)
