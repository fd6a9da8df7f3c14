"""How a point becomes a run with a budget, and how many trials fit on a machine."""

import pytest
from ray import tune

from mlpt.arms import arms_of
from mlpt.config import RuntimeConfig
from mlpt.errors import UserError
from mlpt.models.masked import masked_modules
from mlpt.run.build import arms_on, build_model, first_mixture, open_sources, step_hooks
from mlpt.tuning.placement import concurrency, trial_needs, trial_resources
from mlpt.tuning.pretrain_trial import PretrainJob
from mlpt.tuning.searching import a_point
from mlpt.tuning.space import Space, load_space, shipped_spaces
from mlpt.tuning.trial import fitted_space, job_of

PRETRAIN = PretrainJob()
SPACE = Space(
    parameters={"train.optimizer.lr": tune.loguniform(1e-4, 1e-2)},
    metrics={"dev/mlm": "min"},
    base={"train.batch_size": 16, "train.clip": 0.5},
    tokens=100_000,
    trials=1,
    evaluations=9,
)


@pytest.mark.parametrize("space", shipped_spaces(), ids=lambda space: space.name)
def test_every_point_of_a_shipped_space_is_a_run(space):
    job = job_of(space)
    overrides = {"model": "bert-base-uncased"} if space.job == "multitask" else {}
    for _ in range(30):
        config = job.config(space, overrides, a_point(space), seed=0)
        job.check(space, config)
        assert job.budget(config, space, 64).tokens >= space.tokens
        if space.job == "pretrain":
            arms = arms_of(list(config.objectives), [], config.data.mix, texts=False)
            assert sum(first_mixture(config, arms).values()) == pytest.approx(1)


@pytest.mark.parametrize("space", [s for s in shipped_spaces() if s.job == "pretrain"], ids=lambda space: space.name)
def test_a_point_of_a_shipped_space_builds_its_model_masks_and_all(space, small_blocks):
    smaller = {"model": {"hidden_size": 32, "layers": 1, "heads": 2}}
    for _ in range(3):
        config = PRETRAIN.config(space, smaller, a_point(space), seed=0)
        sources = open_sources(config, small_blocks)
        model = build_model(config, sources)
        hooks = step_hooks(config, model, sources, None)
        assert bool(masked_modules(model)) == (config.masks is not None)
        assert all(hook.name for hook in hooks)


def test_the_point_wins_over_the_user_and_the_user_over_the_space():
    config = PRETRAIN.config(
        SPACE, {"train": {"clip": 2.0, "optimizer": {"lr": 9}}}, {"train.optimizer.lr": 0.5}, seed=7
    )
    assert (config.train.batch_size, config.train.clip, config.train.optimizer.lr, config.seed) == (16, 2.0, 0.5, 7)


def test_trials_use_one_worker_unless_asked_for_more():
    assert PRETRAIN.config(SPACE, {}, {}, 0).runtime.num_workers == 1
    assert PRETRAIN.config(SPACE, {"runtime": {"num_workers": 2}}, {}, 0).runtime.num_workers == 2


@pytest.mark.parametrize(("batch_size", "block_size"), [(16, 64), (7, 33), (512, 512)])
def test_the_budget_is_met_and_cut_into_equal_parts(batch_size, block_size):
    config = PRETRAIN.config(SPACE, {"train": {"batch_size": batch_size}}, {}, 0)
    config = PRETRAIN.budgeted(config, SPACE, block_size)
    spent = config.train.total_steps(block_size) * batch_size * block_size
    assert config.train.steps == SPACE.evaluations * config.train.evaluate_every
    assert SPACE.tokens <= spent < SPACE.tokens + SPACE.evaluations * batch_size * block_size


def test_a_pausing_scheduler_finds_a_checkpoint_at_every_evaluation():
    learned = {"meta": {"interval": 30, "lag": 10, "rules": {"mixture": {"rule": "mometas"}}}}
    config = PRETRAIN.budgeted(PRETRAIN.config(SPACE, learned, {}, 0), SPACE.changed(scheduler="hyperband"), 64)
    assert config.train.checkpoint_every == config.train.evaluate_every
    assert config.train.evaluate_every % config.meta.interval == 0


def test_a_metric_that_no_trial_reports_is_refused():
    config = PRETRAIN.config(SPACE, {}, {}, 0)
    with pytest.raises(UserError, match="no trial reports 'dev/loss'"):
        PRETRAIN.check(SPACE.changed(metrics={"dev/loss": "min"}), config)


OF_TEXTS = {"data": {"sources": {"legal": "a.txt", "sea": "b.txt"}}, "meta": {"target": {"texts": "c.txt"}}}


def test_of_several_texts_sampling_searches_fixed_mixes_beside_a_learned_one():
    space = fitted_space(load_space("sampling"), OF_TEXTS)
    even, learned, other = [PRETRAIN.config(space, OF_TEXTS, p, 0) for p in (*space.first, a_fixed_mix(space))]
    arms = arms_on(even, ["legal", "sea"])
    assert first_mixture(even, arms) == {"mlm@legal": 0.5, "mlm@sea": 0.5}
    assert learned.meta.rules["mixture"].rule == "dga"
    assert first_mixture(other, arms)["mlm@sea"] == pytest.approx(1 / 5)
    assert {one.train.draw for one in (even, learned, other)} == {"stratified"}  # drawn alike, so that they compare
    for config in (even, learned, other):
        PRETRAIN.check(space, config)


def a_fixed_mix(space):
    point = a_point(space) | {"rule": "fixed", "mlm@legal": 0.4, "mlm@sea": 0.1}
    assert set(point) == {"rule", "meta_lr", "mlm@legal", "mlm@sea"}
    return point


@pytest.mark.parametrize("data", [{}, {"mix": "uniform"}, {"mix": {"legal": 0.25, "sea": 0.75}}])
def test_where_the_mix_is_given_sampling_searches_how_objectives_are_drawn(data):
    overrides = {} if not data else {"data": {**OF_TEXTS["data"], **data}}
    assert "noise" in fitted_space(load_space("sampling"), overrides).parameters


def test_a_mix_of_texts_without_names_is_refused():
    with pytest.raises(UserError, match=r"texts that data\.sources names"):
        fitted_space(load_space("sampling"), {"data": {"source": "texts/", "mix": "learned"}})


def test_where_the_mix_is_learned_trials_report_arms_and_not_objectives():
    config = PRETRAIN.config(SPACE, {"data": {**OF_TEXTS["data"], "mix": "learned"}}, {}, 0)
    PRETRAIN.check(SPACE.changed(metrics={"dev/mlm@sea": "min"}), config)
    with pytest.raises(UserError, match=r"no trial reports 'dev/mlm'; there are .*dev/mlm@legal"):
        PRETRAIN.check(SPACE, config)


def test_trials_of_several_workers_have_one_learner_each():
    several = {"runtime": {"num_workers": 2}, "meta": {"rules": {"mixture": "dga"}, "replicas": 2}}
    config = PRETRAIN.config(SPACE, several, {}, 0)
    with pytest.raises(UserError, match="trials of several workers have one learner each"):
        PRETRAIN.check(SPACE, config)


def test_concurrency_counts_workers_and_the_meta_learner_of_nested_trials():
    runtime = RuntimeConfig(num_workers=2, cpus_per_worker=2, meta_cpus=1, meta_resources={"meta": 1})
    needs = trial_needs(runtime)
    assert needs == {"CPU": 5, "meta": 1}
    assert trial_resources(runtime) == {"memory": 1}  # a part of a CPU would be missing to its workers
    said = []
    assert concurrency(needs, {"CPU": 16, "meta": 8}, 10, None, said.append) == 3
    assert concurrency(needs, {"CPU": 16, "meta": 2}, 10, None, said.append) == 2
    assert "10 trials, 3 at a time" in said[0]


def test_a_cluster_too_small_for_one_trial_is_one_line():
    with pytest.raises(UserError, match="a trial needs 4 CPU and Ray has 2") as refused:
        concurrency({"CPU": 4}, {"CPU": 2}, 10, None, print)
    assert "\n" not in str(refused.value)


def test_a_cluster_that_will_grow_may_be_promised():
    said = []
    assert concurrency({"CPU": 4}, {"CPU": 4}, 10, 3, said.append) == 3
    assert "2 of them wait for the cluster to grow" in said[0]
