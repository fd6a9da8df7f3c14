"""Rules of the teacher in whole runs, against the published steps as tests/metalmo_reference.py has them."""

from dataclasses import replace

import pytest
import torch
from killing import KilledError, killed_at
from metalmo_reference import Batch, Settings, end_of_accumulation, hard_step, soft_step

from mlpt.config import RunConfig
from mlpt.data.config import DataConfig
from mlpt.data.prepare import prepare
from mlpt.data.task_tokenizer import train_task_tokenizer
from mlpt.data.two_moons import moons
from mlpt.errors import UserError
from mlpt.meta.judges import TaskJudge
from mlpt.meta.policy import Evidence
from mlpt.meta.rules.teacher import Coming, corrupted
from mlpt.meta.snapshot import take_snapshot
from mlpt.models import writers
from mlpt.models.pairs import draw_pair
from mlpt.models.teacher import NetworkConfig, Pair, build_student, build_teacher
from mlpt.models.writers import load_flat
from mlpt.objectives import OBJECTIVES
from mlpt.objectives.counted_masking import CountedMaskingConfig, mask_counted
from mlpt.randomness import torch_generator, training_noise
from mlpt.run.build import arms_in, build_learner, build_model, open_sources, run_rank
from mlpt.settings import load_settings, merge
from mlpt.storage.checkpoint import Checkpoints
from mlpt.tasks import TASKS, Example, TaskData, TaskSource
from mlpt.tasks.episodes import EpisodeConfig
from mlpt.training.group import Group
from mlpt.training.optimizer import OptimizerConfig, make_optimizer
from mlpt.training.pretraining import Pretraining
from mlpt.training.schedule import learning_rate
from mlpt.training.state import model_tensors
from mlpt.training.tracker import read_metrics

LENGTH, ROWS, STEPS = 34, 4, 5
SIZES = {"hidden_size": 8, "heads": 2, "intermediate_size": 32, "layers": 1}
STILL = {"dropout": 0.0, "attention_dropout": 0.0}
MADE = {"network": {**SIZES, **STILL, "positions": LENGTH}, "seed": 3}
# With a large epsilon AdamW makes no whole steps of gradients that are nothing but rounding.
ADAMW = {"lr": 0.02, "eps": 1e-3}
RULE = {"optimizer": {"eps": ADAMW["eps"]}, "tasks": ["two_moons_10"], "rows": ROWS, "episodes": {"query_share": 0}}

TINY = {
    "seed": 5,
    "model": {"architecture": "metalmo", **SIZES, "dropout": 0},
    "objectives": {"teacher_made": MADE},
    "meta": {
        "interval": 1,
        "lag": 1,
        "rules": {"mixture": {"rule": "uniform"}, "teacher": {"rule": "teacher_hard", **RULE}},
    },
    "train": {
        "steps": STEPS,
        "batch_size": ROWS,
        "micro_batch_size": ROWS,
        "clip": 5.0,
        "optimizer": ADAMW,
        "schedule": {"shape": "power_law", "warmup": 2},
        "evaluate_batches": 1,
        "log_every": 1,
        "checkpoint_every": STEPS,
    },
    "runtime": {"num_workers": 0},
    "report": {"tensorboard": False},
}


@pytest.fixture(scope="module")
def moons_blocks(tmp_path_factory):
    """Two hundred texts of two moons, in which some end early, and a tokenizer with task tokens."""
    folder = tmp_path_factory.mktemp("moons")
    points, _ = moons(42, 3200)
    groups = points.reshape(-1, 16, 2)
    texts = [
        " ".join(str(one) for point in group[: 16 - number % 3] for one in point)
        for number, group in enumerate(groups.tolist())
    ]
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    numbers = [*map(str, range(64)), " ".join(str(number % 64) for number in range(128))]
    train_task_tokenizer(lambda: iter([*texts, *numbers]), 512, 1).save_pretrained(folder / "tokenizer")
    config = DataConfig(
        source=str(folder / "texts.txt"),
        documents="lines",
        tokenizer=str(folder / "tokenizer"),
        packing="windows",
        block_size=LENGTH,
        dev_share=0.2,
        test_share=0.1,
        workers=1,
    )
    prepare(config, str(folder / "blocks"))
    return str(folder / "blocks")


def config_with(**changes) -> RunConfig:
    return load_settings(RunConfig, merge(TINY, changes))


def run(config, blocks, folder, **keywords):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return run_rank(config, blocks, folder, Group(), **keywords)


def saved(folder):
    """The model's tensors and the teacher's weights in the last checkpoint."""
    tensors = Checkpoints(folder / "checkpoints", 3).latest(say=pytest.fail).tensors
    return tensors["model"], tensors["outer"]["policy/teacher/weights"]


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
    )
    found = []
    for step in range(STEPS):
        rate = learning_rate(config.train.schedule, step, STEPS, 0.02)
        for group in (*optimizer.param_groups, *teacher_optimizer.param_groups):
            group["lr"] = rate
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
        end_of_accumulation(teacher, teacher_optimizer, 5.0)
    return student, teacher, found


def distance(ours, theirs, start):
    """How far `ours` is from `theirs`, as a share of how far training moved them; all are tensors by name."""
    moved = [torch.cat([one[name].detach().flatten() for name in theirs]) for one in (ours, theirs, start)]
    return float((moved[0] - moved[1]).norm() / (moved[1] - moved[2]).norm())


CASES = {
    "hard": ({}, {}),
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
    student, teacher, found = published(config, moons_blocks, soft=name != "hard")
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
    if name == "hard":
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
        meta={"interval": 2, "lag": 1, "rules": {"teacher": {"baseline": 0.5, "entropy": 0.01}}},
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
    work = Pretraining(config.train, model, sources, arms.every, arms.trained, {}, Group(), config.seed)
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


REFUSED = {
    "no objective": ({"objectives": {"teacher_made": None, "counted_mlm": {}}}, "there are 0"),
    "nothing judges": ({"meta": {"rules": {"teacher": {"tasks": []}}}}, "nothing judges the teacher"),
    "judged by itself": (
        {"meta": {"target": "teacher_made", "rules": {"teacher": {"tasks": []}}}},
        "whose loss the teacher itself would make",
    ),
    "no labelled rows": ({"meta": {"rules": {"teacher": {"tasks": ["boolq"]}}}}, "needs labelled rows"),
    "no such task": ({"meta": {"rules": {"teacher": {"tasks": ["three_moons"]}}}}, "which is no task"),
    "no format": ({"meta": {"rules": {"teacher": {"tasks": ["sst2"]}}}}, "has no text-to-text format"),
    "soft masker": (
        {
            "objectives": {"teacher_made": {"teacher": "masker"}},
            "meta": {"rules": {"teacher": {"rule": "teacher_soft"}}},
        },
        "a masker makes no soft samples",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_when_it_is_read(name):
    changes, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason) as error:
        config_with(**changes)
    assert "\n" not in str(error.value)


def test_a_short_network_and_a_teacher_of_another_size_are_one_line(moons_blocks):
    short = config_with(objectives={"teacher_made": {"network": {"positions": 8}}})
    with pytest.raises(UserError, match=r"network\.positions=34"):
        build_model(short, open_sources(short, moons_blocks))
    made = build_model(config_with(), open_sources(config_with(), moons_blocks)).objectives["teacher_made"]
    with pytest.raises(UserError, match="another vocabulary"):
        made.obey(torch.zeros(3))


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


def test_a_collapsed_teacher_is_one_warning_with_its_figure(moons_blocks, tmp_path, monkeypatch):
    initialise = writers.build_teacher

    def always_masks(*arguments):
        teacher = initialise(*arguments)
        torch.nn.init.constant_(teacher.head_inputs.decoder.bias[1:2], 20.0)  # of the mask token
        return teacher

    monkeypatch.setattr(writers, "build_teacher", always_masks)
    events = []
    run(config_with(train={"steps": 3, "checkpoint_every": 3}), moons_blocks, tmp_path, tell=events.append)
    warned = [one["text"] for one in events if one["event"] == "warning"]
    assert len(warned) == 1
    assert "the teacher writes the mask token at 100% of the positions" in warned[0]
    reports = [line["meta"]["teacher"] for line in read_metrics(tmp_path) if "meta" in line]
    assert reports[0]["mask_share"] > 0.99


def test_labelled_tasks_need_task_tokens(small_blocks):
    config = config_with(objectives={"teacher_made": {"network": {"positions": 32}}})
    sources = open_sources(config, small_blocks)
    learner = build_learner(config, sources, torch.device("cpu"))
    snapshot = take_snapshot(learner._model, learner._optimizer, 0, 0.01, moments=True)
    with pytest.raises(UserError, match=r"without task tokens.*data\.tokenizer=task_bpe"):
        learner.update(snapshot, Evidence())


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ([], "has no labelled training rows"),
        ([Example(0, "who", "it was 12", label=1)], "no answer of task 'record_span' fits"),
    ],
)
def test_a_task_that_cannot_judge_is_one_line(moons_blocks, monkeypatch, examples, says):
    data = TaskData(TASKS["record_span"], {"train": examples})
    monkeypatch.setattr("mlpt.meta.judges.load_task", lambda *_: data)
    rule = {"tasks": ["record_span"], "source": {"data_dir": "superglue"}}
    config = config_with(meta={"rules": {"teacher": rule}})
    learner = build_learner(config, open_sources(config, moons_blocks), torch.device("cpu"))
    snapshot = take_snapshot(learner._model, learner._optimizer, 0, 0.01, moments=True)
    with pytest.raises(UserError, match=says):
        learner.update(snapshot, Evidence())


def test_answers_that_are_in_no_window_are_a_warning(moons_blocks, monkeypatch):
    found = Example(1, "who", "it was 12", label=1, spans=((7, 9),))
    data = TaskData(TASKS["record_span"], {"train": [Example(0, "who", "it was 12", label=1), found, found]})
    monkeypatch.setattr("mlpt.meta.judges.load_task", lambda *_: data)
    config = config_with(meta={"rules": {"teacher": {"tasks": ["record_span"], "source": {"data_dir": "superglue"}}}})
    learner = build_learner(config, open_sources(config, moons_blocks), torch.device("cpu"))
    snapshot = take_snapshot(learner._model, learner._optimizer, 0, 0.01, moments=True)
    first, second = (learner.update(snapshot, Evidence()).report for _ in range(2))
    assert "the answers of 1 of 3 rows" in first["warnings"][0]
    assert "warnings" not in second


def test_only_objectives_that_load_models_name_some():
    """A teacher of batches is made, not loaded: the check of tokenizers has nothing to look up for it."""
    settings = {"teacher": "FOLDER"}
    found = {name: OBJECTIVES[name].saved_models(settings) for name in ("distill", "teacher_made", "mlm")}
    assert found == {"distill": ["FOLDER"], "teacher_made": [], "mlm": []}
    assert OBJECTIVES["combined"].saved_models({"distill": settings}) == ["FOLDER"]
