"""Cells side by side on a real Ray: the results of the same cells one after another."""

from pathlib import Path

import pytest

from mlpt.runtime.finetune import finetune_cells
from mlpt.sparsity.commands import prune


@pytest.mark.slow
def test_cells_side_by_side_are_those_one_after_another(settings, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # workers have folders of their own, where relative paths lead nowhere
    prune(str(tiny_model), "magnitude", 0.5, "masks")
    sizes = {"seeds": (1, 2), "max_steps": 6, "eval_steps": 3, "masks": "masks"}
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
