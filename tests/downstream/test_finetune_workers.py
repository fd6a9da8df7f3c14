"""Fine-tuning on a real Ray, cells side by side or steps shared: the results of the same cells one after another."""

import json
from pathlib import Path

import pytest
from tiny_tasks import own_tasks, saved_encoder

from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.errors import UserError
from mlpt.runtime.finetune import finetune_cells, multitask
from mlpt.settings import load_settings
from mlpt.sparsity.commands import prune


@pytest.mark.slow
def test_cells_side_by_side_are_those_one_after_another(settings, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # workers have folders of their own, where relative paths lead nowhere
    prune(str(tiny_model), "magnitude", 0.5, "masks")
    sizes = {"seeds": (1, 2), "max_steps": 6, "evaluate_every": 3, "masks": "masks"}
    alone = finetune_cells(settings("alone", **sizes), 1, say=lambda text: None)
    said: list[str] = []
    shown: list[tuple] = []
    together = finetune_cells(settings("together", **sizes), 2, say=said.append, show=lambda *one: shown.append(one))
    assert [(r.seed, r.best, r.last, r.best_step) for r in together] == [
        (r.seed, r.best, r.last, r.best_step) for r in alone
    ]
    assert "2 of 2 cells, 2 at a time; results go to together" in said
    assert (tmp_path / "together" / "results.json").is_file()
    assert shown[-1][1:3] == (2, 2)
    assert all(r.masks == str(tmp_path / "masks") for r in together)
    # Finished cells are read back, without Ray.
    again = finetune_cells(settings("together", **sizes), 2, say=said.append)
    assert [Path(r.folder).name for r in again] == [Path(r.folder).name for r in together]


@pytest.mark.slow
def test_two_workers_share_the_steps_of_a_cell(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"micro_batch_size": 8, "max_steps": 6, "evaluate_every": 3}
    (alone,) = finetune_cells(settings("alone", **sizes), 1, say=lambda text: None)
    shown: list[tuple] = []
    shared = settings("shared", num_workers=2, **sizes)
    (together,) = finetune_cells(shared, 1, say=lambda text: None, show=lambda *one: shown.append(one))
    assert (together.best, together.last, together.best_step) == (alone.best, alone.last, alone.best_step)
    assert shown[-1][:3] == ("mood, lr 0.003, seed 1 (cell 1 of 1)", 6, 6)
    lines = [(tmp_path / name / "mood" / "lr0.003-seed1" / "metrics.jsonl").read_text() for name in ("alone", "shared")]
    first, second = ([json.loads(line) for line in text.splitlines()] for text in lines)
    assert [line["loss"] for line in first if "loss" in line] == pytest.approx(
        [line["loss"] for line in second if "loss" in line], rel=1e-4
    )
    assert not list(tmp_path.glob("shared/**/.ray"))
    with pytest.raises(UserError, match="choose one"):
        finetune_cells(shared, 2)


@pytest.mark.slow
def test_two_workers_share_the_steps_and_the_scoring_of_a_multi_task_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_encoder(tmp_path / "model")
    values = {
        "model": "model",
        "tasks": ["mood", "same", "grade"],
        "source": own_tasks(tmp_path),
        "conditional": {"max_length": 16},
        "batch_size": 8,
        "micro_batch_size": 4,
        "max_steps": 6,
        "evaluate_every": 3,
        "optimizer": {"lr": 1e-3},
        "scoring": {"precision": "float32"},
        "sampler": {"rule": "mt_uncertainty", "rescore_every": 2},
    }
    said: list[str] = []
    alone = multitask(load_settings(MultitaskConfig, values | {"out": "alone"}), said.append)
    shared = load_settings(MultitaskConfig, values | {"out": "shared", "num_workers": 2})
    together = multitask(shared, said.append)
    assert (together.last, together.rows, together.best_step) == (alone.last, alone.rows, alone.best_step)
    assert "results go to shared" in said
    assert multitask(shared, said.append) == together  # read back, without Ray
