"""Rules of the teacher in whole runs, against the published steps as tests/metalmo_reference.py has them."""

from dataclasses import replace

import pytest
import torch
from killing import KilledError, killed_at
from metalmo_reference import Batch, Settings, end_of_accumulation, hard_step, soft_step
from running import run
from teacher_runs import ADAMW, MADE, ROWS, RULE, STEPS, config_with, saved

from mlpt.meta.judges import TaskJudge
from mlpt.meta.policy import Evidence
from mlpt.meta.rules.teacher import Coming, corrupted
from mlpt.meta.snapshot import take_snapshot
from mlpt.models.pairs import draw_pair
from mlpt.models.teacher import NetworkConfig, Pair, build_student, build_teacher
from mlpt.models.writers import load_flat
from mlpt.objectives.counted_masking import CountedMaskingConfig, mask_counted
from mlpt.randomness import torch_generator, training_noise
from mlpt.run.build import arms_in, build_learner, build_model, open_sources
from mlpt.tasks import TaskSource
from mlpt.tasks.episodes import EpisodeConfig
from mlpt.training.arm_rows import ArmRows
from mlpt.training.group import Group
from mlpt.training.optimizer import OptimizerConfig, make_optimizer
from mlpt.training.schedule import learning_rate
from mlpt.training.state import model_tensors


def published(config, blocks, soft):
    """The same run by the published order of events: student and teacher after it.

    Rows, noise and labelled rows are the house's, by their addresses; all that is made of them is the reference's.
    """
    sources, settings = open_sources(config, blocks), config.meta.rules["teacher"]
    vocabulary = sources.vocabulary
    network = NetworkConfig(**MADE["network"])
    student, teacher = build_student(network, vocabulary, 0), build_teacher(network, vocabulary, MADE["seed"])
    student.load_state_dict(build_model(config, sources).backbone.state_dict())
    optimizer = make_optimizer(student, OptimizerConfig(**ADAMW))
    teacher_optimizer = torch.optim.AdamW(teacher.parameters(), betas=(0.9, 0.98), eps=ADAMW["eps"], weight_decay=0.01)
    learner = build_learner(config, sources, torch.device("cpu"))
    context = learner._context(take_snapshot(learner._model, learner._optimizer, 0, 0.0, moments=True))
    judge = TaskJudge(
        settings.tasks,
        TaskSource(),
        EpisodeConfig(query_share=0),
        ROWS,
        settings.count_padding,
        "teacher_made",
        context,
    )
    walk = sources.walk("all", ROWS, config.seed)
    how = Settings(
        inner_lr=settings.inner_lr,
        meta_weight=settings.meta_weight,
        fixed_target=config.objectives["teacher_made"]["teacher"] == "inputs",
        accumulation=settings.accumulate,
    )
    found = []
    for step in range(STEPS):
        rate = learning_rate(config.train.schedule, step, STEPS, 0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for group in teacher_optimizer.param_groups:
            group["lr"] = settings.optimizer.lr or rate
        text = sources.train.batch(walk.take(step * ROWS, ROWS)).tokens
        auxiliary = torch_generator(config.seed, "teacher/auxiliary", step, 0)
        masked, labels = mask_counted(text, vocabulary, auxiliary, CountedMaskingConfig(), first=4)
        judged = judge.draw(replace(context, step=step))
        labelled = [(one.inputs.input_ids, one.inputs.labels().clamp(min=0)) for side in judged for one in side]
        data = Batch(text, masked, labels, *labelled)
        if soft:
            found.append(soft_step(student, teacher, optimizer, data, how))
            end_of_accumulation(student, optimizer, 5.0)
        else:
            noise = training_noise(config.seed, "teacher_made", step, 0)
            draw = lambda heads, text=text, noise=noise: draw_pair(Pair(*heads), text, 0, noise)  # noqa: E731
            found.append(hard_step(student, teacher, optimizer, data, draw, how))
        if (step + 1) % settings.accumulate == 0:
            end_of_accumulation(teacher, teacher_optimizer, 5.0)
    return student, teacher, found


def distance(ours, theirs, start):
    """How far `ours` is from `theirs`, as a share of how far training moved them; all are tensors by name."""
    moved = [torch.cat([one[name].detach().flatten() for name in theirs]) for one in (ours, theirs, start)]
    return float((moved[0] - moved[1]).norm() / (moved[1] - moved[2]).norm())


CASES = {
    "hard": ({}, {}),
    # ML-4: four steps of the student to one of the teacher, whose schedule is its own.
    "hard, accumulated": ({}, {"accumulate": 4, "optimizer": {**RULE["optimizer"], "lr": 0.02}}),
    "soft": ({"samples": "soft"}, {**RULE, "rule": "teacher_soft", "meta_weight": 100.0}),
    "soft with the text as target": (
        {"samples": "soft", "teacher": "inputs"},
        {**RULE, "rule": "teacher_soft", "meta_weight": 10.0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_interval_1_and_lag_1_are_the_published_order_of_events(moons_blocks, tmp_path, name):
    made, rule = CASES[name]
    config = config_with(objectives={"teacher_made": made}, meta={"rules": {"teacher": rule}})
    student, teacher, found = published(config, moons_blocks, soft=name.startswith("soft"))
    run(config, moons_blocks, tmp_path)
    model, weights = saved(tmp_path)
    start = build_model(config, open_sources(config, moons_blocks))
    ours = {key.removeprefix("backbone."): value for key, value in model.items()}
    assert distance(ours, dict(student.named_parameters()), dict(start.backbone.named_parameters())) < 1e-3
    # The policy's last update was launched one step before the end.
    network = start.objectives["teacher_made"].writer.network
    before = {key: one.detach().clone() for key, one in network.named_parameters()}
    load_flat(network, weights)
    assert distance(dict(network.named_parameters()), dict(teacher.named_parameters()), before) < 1e-3
    if name.startswith("hard"):
        assert all(one.applied and abs(float(one.h)) > 1e-4 for one in found)


def test_lag_0_is_not_the_published_order(moons_blocks, tmp_path):
    """With it the student's first step already sees the teacher after its first update."""
    made, rule = CASES["soft"]
    config = config_with(objectives={"teacher_made": made}, meta={"lag": 0, "rules": {"teacher": rule}})
    student, _, _ = published(config, moons_blocks, soft=True)
    run(config, moons_blocks, tmp_path)
    ours = {key.removeprefix("backbone."): value for key, value in saved(tmp_path)[0].items()}
    start = build_model(config, open_sources(config, moons_blocks))
    assert distance(ours, dict(student.named_parameters()), dict(start.backbone.named_parameters())) > 1e-2


def test_a_killed_run_with_a_teacher_ends_bit_equal(moons_blocks, tmp_path):
    config = config_with(
        meta={"interval": 2, "lag": 1, "rules": {"teacher": {"baseline": 0.5, "entropy": 0.01, "accumulate": 3}}},
        train={"steps": 7, "checkpoint_every": 3},
    )

    run(config, moons_blocks, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(config, moons_blocks, tmp_path / "killed", must_save=killed_at(5))
    assert run(config, moons_blocks, tmp_path / "killed")["resumed_at"] == 3
    (one, ours), (other, theirs) = saved(tmp_path / "whole"), saved(tmp_path / "killed")
    assert torch.equal(ours, theirs)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_teacher_is_in_no_snapshot_checkpointed_model_or_export(moons_blocks, tmp_path):
    config = config_with(train={"steps": 2, "checkpoint_every": 2})
    run(config, moons_blocks, tmp_path)
    names = set(saved(tmp_path)[0])
    plain = config_with(objectives={"teacher_made": None, "counted_mlm": {}}, meta={"rules": {"teacher": None}})
    plain = build_model(plain, open_sources(plain, moons_blocks))
    assert names == set(model_tensors(plain))
    assert {file.name for file in (tmp_path / "model").iterdir()} >= {"config.json", "model.safetensors"}
    assert not (tmp_path / "model" / "heads.safetensors").exists()


def test_the_learner_redraws_what_a_worker_trains_on(moons_blocks):
    config = config_with(train={"micro_batch_size": 2})
    sources = open_sources(config, moons_blocks)
    learner, model = build_learner(config, sources, torch.device("cpu")), build_model(config, sources)
    arms = arms_in(config, sources)
    work = ArmRows(config.train, model, sources, arms.every, arms.trained, {}, Group(), config.seed)
    mixture = {"teacher_made": 1.0}
    for step in range(3):
        coming, planned = work.coming(step, mixture), work.plan(step, mixture)
        snapshot = take_snapshot(model, make_optimizer(model, config.train.optimizer), step, 0.01, moments=True)
        context = learner._context(snapshot)
        for ours, theirs in zip(coming, planned, strict=True):
            learners = corrupted(Coming(ours, *context.coming_batch(ours)), context)
            workers = work.inputs(step, theirs)
            assert torch.equal(learners.inputs.input_ids, workers.input_ids)
            assert torch.equal(learners.inputs.targets, workers.targets)
            assert learners.weight == theirs.weight * theirs.share


@pytest.fixture
def masker_run(moons_blocks):
    """A learner of a masker that is judged by held-out masked modelling, and what it needs for an update."""
    config = config_with(
        objectives={"teacher_made": {"teacher": "masker"}, "counted_mlm": {}},
        meta={
            "target": "counted_mlm",
            "rules": {"teacher": {"tasks": [], "optimizer": {"lr": 0.1, "weight_decay": 0}}},
        },
    )
    sources = open_sources(config, moons_blocks)
    return config, sources, build_learner(config, sources, torch.device("cpu"))


def test_a_masker_learns_from_the_target(masker_run):
    config, sources, learner = masker_run
    model = build_model(config, sources)
    optimizer = make_optimizer(model, config.train.optimizer)
    for step in range(2):
        answer = learner.update(take_snapshot(model, optimizer, step, 0.01, moments=True), Evidence())
    report = answer.report["teacher"]
    assert 0 < abs(report["h"]) <= 1
    weights = answer.parts["teacher"].tensors["weights"]
    assert weights.shape == (sources.vocabulary.size,)
    assert weights.abs().max() > 0
    assert report["entropy_positions"] > 1
