"""What commands a study starts, and what it reads from what they leave, without running them."""

import json
from pathlib import Path

import pytest
import yaml
from study_files import write

from mlpt.errors import UserError
from mlpt.studies.commands import Command
from mlpt.studies.history import Declared
from mlpt.studies.measurements import Measurement
from mlpt.studies.places import Places
from mlpt.studies.plan import Plan
from mlpt.studies.reading import read_study
from mlpt.studies.results import collect
from mlpt.studies.table import markdown
from mlpt.studies.values import figure, value_of

TASKS = {
    "name": "tasks",
    "question": "Do shares matter?",
    "decision": "None.",
    "base": {
        "work": "multitask",
        "settings": {
            "model": "somewhere",
            "tasks": ["docs_package", "docs_summary"],
            "freeze": "none",
            "evaluate_every": 20,
        },
    },
    "cells": {
        "alone": {"apart": True, "settings": {"encoder": "shared", "sampler": {"rule": "proportional"}}},
        "together": {"settings": {"sampler": {"rule": "uniform"}}},
    },
    "seeds": [4],
    "budget": {"steps": 41},
    "measurements": {"mean": {"score": "mean"}, "summary": {"score": {"task": "docs_summary", "which": "last"}}},
}


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(TASKS))
    return Plan(read_study(str(tmp_path / "tasks.yaml")), Places(tmp_path / "out"))


def asked(words):
    assert words[0] == "finetune"
    assert words[2:] == ["--multitask"]
    return yaml.safe_load(Path(words[1]).read_text())


def test_tasks_apart_share_the_steps_of_tasks_together(tasks):
    alone = [asked(words) for words in tasks.works["alone"].commands(4, None)]
    assert [one["tasks"] for one in alone] == [["docs_package"], ["docs_summary"]]
    assert {(one["max_steps"], one["evaluate_every"], one["seed"], one["encoder"]) for one in alone} == {
        (20, 10, 4, "shared")
    }
    (together,) = [asked(words) for words in tasks.works["together"].commands(4, None)]
    assert (together["max_steps"], together["evaluate_every"], len(together["tasks"])) == (41, 20, 2)
    assert len({one["out"] for one in [*alone, together]}) == 3


def multitask_result(task, best, last):
    scores = [{task: {"dev": {"accuracy": value}}} for value in (best, last)]
    return {
        **{"best": scores[0], "last": scores[1], "running_best": scores[0], "majority": {}, "rows": {}, "warnings": []},
        **{"selects": {task: "accuracy"}, "steps": 20, "seconds": 2.0},
    }


def test_a_run_of_tasks_apart_is_read_as_one_and_is_finished_when_all_are(tasks):
    work, folder = tasks.works["alone"], tasks.works["alone"].run(4)
    for task, best, last in (("docs_package", 0.5, 0.25), ("docs_summary", 0.75, 0.8)):
        assert not work.is_done(folder)
        (folder / task).mkdir(parents=True)
        (folder / task / "results.json").write_text(json.dumps(multitask_result(task, best, last)))
    assert work.is_done(folder)
    assert list(work.commands(4, None)) == []
    measured = tasks.study.declared.measurements
    assert value_of(measured["mean"], work, folder) == 0.625
    assert value_of(measured["summary"], work, folder) == 0.8
    results = collect(tasks, Declared("now", "0", []), {("run", "together", 4): "no room"})
    assert results["cells"]["alone"]["costs"]["steps"]["mean"] == 40
    page = markdown(tasks.study.declared, results)
    assert "| alone | 62.5 | 80.0 | 1 of 1 | - | 4.0 | - |" in page
    assert "| together | - | - | 0 of 1 | - | - | - |" in page
    assert "* together, seed 4, run: no room" in page


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": {"tokens": 100}}, "multi-task work takes a budget of steps"),
        ({"budget": {"steps": 1}}, "cell 'alone': 1 steps are not one for each of 2 tasks"),
        ({"measurements": {"x": {"score": "sst2"}}}, "'alone' has no task 'sst2'; it has docs_package, docs_summary"),
        ({"measurements": {"x": {"held_out": "mlm"}}}, "'alone' trains no objectives"),
        ({"measurements": {"x": {"evaluate": "docs_package"}}}, "'alone' leaves no pretrained model to measure"),
    ],
)
def test_what_multi_task_work_cannot_do(tmp_path, changes, says):
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(TASKS | changes))
    with pytest.raises(UserError) as error:
        Plan(read_study(str(tmp_path / "tasks.yaml")), Places(tmp_path / "out"))
    assert says in str(error.value)


def test_figures_of_a_summary():
    summary = {"meta": {"launch": 1.0, "stall": 2.0, "idle": 0}, "seconds": 12.0, "steps": 4}
    assert figure(summary, "seconds") == 12
    assert figure(summary, "meta.launch + meta.stall") == 3
    assert figure(summary, "meta.launch + meta.stall / seconds") == 0.25
    for path, says in [
        ("meta.stal", "the summary has no 'meta.stal': at 'stal' there is launch, stall, idle"),
        ("steps.more", "at 'more' there is no more"),
        ("meta", "'meta' of the summary is no number"),
        ("seconds / meta.launch / meta.idle", "'seconds / meta.launch / meta.idle' has no value"),
    ]:
        with pytest.raises(UserError) as error:
            figure(summary, path)
        assert says in str(error.value)


def test_a_run_goes_on_from_its_checkpoint_or_begins_again_and_a_finished_one_is_left_alone(small_blocks, tmp_path):
    study = read_study(str(write(tmp_path, small_blocks)))
    work = Plan(study, Places(tmp_path / "out")).works["small"]
    folder = work.run(1)
    (begun,) = work.commands(1, small_blocks)
    assert begun[0] == "pretrain"
    written = yaml.safe_load(Path(begun[1]).read_text())
    assert (written["seed"], written["run_dir"], written["data"]["source"]) == (1, str(folder), small_blocks)
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()  # killed before its first checkpoint
    assert list(work.commands(1, small_blocks)) == [begun]
    assert not folder.exists()
    (folder / "checkpoints/step_00000005").mkdir(parents=True)
    (folder / "checkpoints/step_00000005/COMMITTED").touch()
    (folder / "config.yaml").touch()
    assert list(work.commands(1, small_blocks)) == [["pretrain", "--resume", str(folder)]]
    (folder / "summary.json").write_text("{}")
    assert list(work.commands(1, small_blocks)) == []


def test_measurements_of_one_command_share_it(small_blocks, tmp_path):
    changes = {
        "cells/pruned": {"work": "prune", "start": "small", "settings": {"sparsity": 0.5}},
        "measurements": {
            "loss": {"losses": {"weights": "small"}},
            "mse": {"losses": {"weights": "small", "figure": "kd_mse"}},
            "more": {"losses": {"weights": "small", "batches": 2}},
        },
        "comparisons": None,
    }
    plan = Plan(read_study(str(write(tmp_path, small_blocks, changes))), Places(tmp_path / "out"))
    loss, mse, more = (plan.commands[name, "pruned"] for name in ("loss", "mse", "more"))
    assert loss.folder(0) == mse.folder(0) != more.folder(0)
    own = plan.commands["loss", "small"]
    assert next(own.commands(0))[:3] == ["evaluate", str(plan.works["small"].run(0)), "--batches"]
    assert ("loss", "large") not in plan.commands  # it makes no masks
    evaluate = next(loss.commands(0))
    masks = tmp_path / "out/measured/masks-on-small/pruned/seed0/masks.safetensors"
    assert evaluate[:4] == ["evaluate", str(plan.works["small"].run(0)), "--masks", str(masks)]
    assert evaluate[4:6] == ["--batches", "16"]


def command(plan, measurement):
    work = plan.works["small"]
    return Command("x", Measurement(**measurement), work, work, plan.places)


def test_scores_of_commands_are_those_of_their_files(small_blocks, tmp_path):
    plan = Plan(read_study(str(write(tmp_path, small_blocks))), Places(tmp_path / "out"))
    cells = [
        finetuned("docs_package", 1e-3, 0.5, 0.4),
        finetuned("docs_package", 1e-4, 0.6, 0.3),
        finetuned("docs_summary", 1e-3, 0.9, 0.8),
        finetuned("docs_summary", 1e-4, 0.7, 0.7),
    ]
    tasks = ["docs_package", "docs_summary"]
    best, last = (command(plan, {"finetune": {"tasks": tasks, "which": which}}) for which in ("best", "last"))
    best.folder(0).mkdir(parents=True)
    (best.folder(0) / "results.json").write_text(json.dumps({"summary": [], "cells": cells}))
    assert best.value(0) == pytest.approx((0.6 + 0.9) / 2)
    assert last.value(0) == pytest.approx((0.3 + 0.8) / 2)

    lines = [
        {"level": "field", "name": "syntax", "metric": "accuracy", "value": 0.7},
        {"level": "overall", "name": "overall", "metric": "accuracy", "value": 0.6},
        {"level": "overall", "name": "overall", "metric": "macro_f1", "value": 0.5},
    ]
    figures = {"suites": {"docs_package": {"models": {"m": {"lines": lines}}}}}
    for asked_of, value in [({}, 0.6), ({"metric": "macro_f1"}, 0.5), ({"name": "syntax"}, 0.7)]:
        suite = command(plan, {"evaluate": {"suite": "docs_package", **asked_of}})
        suite.folder(0).mkdir(parents=True, exist_ok=True)
        (suite.folder(0) / "figures.json").write_text(json.dumps(figures))
        assert suite.value(0) == value
    unknown = command(plan, {"evaluate": {"suite": "docs_package", "name": "semantics"}})
    with pytest.raises(UserError, match="has no line 'semantics'; it has overall"):
        unknown.value(0)


def test_a_fine_tuning_is_measured_once_its_whole_grid_is(small_blocks, tmp_path):
    plan = Plan(read_study(str(write(tmp_path, small_blocks))), Places(tmp_path / "out"))
    tasks = ["docs_package", "docs_summary"]
    tuned = command(plan, {"finetune": {"tasks": tasks, "settings": {"learning_rates": [1e-3, 1e-4]}}})
    tuned.folder(0).mkdir(parents=True)
    made = []
    for task, rate in [(task, rate) for task in tasks for rate in (1e-3, 1e-4)]:  # written after each cell
        assert not tuned.is_done(0)
        assert [words[0] for words in tuned.commands(0)] == ["finetune"]
        made.append(finetuned(task, rate, 0.5, 0.5))
        (tuned.folder(0) / "results.json").write_text(json.dumps({"summary": [], "cells": made}))
    assert tuned.is_done(0)
    assert list(tuned.commands(0)) == []


def finetuned(task, rate, best, last):
    return {
        **{"task": task, "learning_rate": rate, "seed": 0, "metric": "accuracy", "best_step": 1, "steps": 1},
        **{"best": {"dev": {"accuracy": best}}, "last": {"dev": {"accuracy": last}}, "majority": {}, "rows": 1},
        **{"seconds": 1.0, "examples_per_second": 1.0, "folder": "f"},
    }
