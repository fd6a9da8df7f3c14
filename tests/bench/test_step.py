"""The step benchmark runs both sides and reports what it measured; no figure is judged here."""

import pytest

from mlpt.bench import step


def shrink(monkeypatch):
    for name, small in {"VOCABULARY": 64, "HIDDEN": 32, "LAYERS": 1, "BATCH": 4, "LENGTH": 16, "STEPS": 2}.items():
        monkeypatch.setattr(step, name, small)
    monkeypatch.setattr(step, "ROUNDS", 1)


def test_the_step_benchmark_reports_both_precisions_and_every_objectives_corruption(monkeypatch, capsys):
    shrink(monkeypatch)
    rows = step.run()
    assert len(rows) == 2 + len(step.CORRUPTING)
    for row in rows[:2]:
        assert row.ratio == pytest.approx(row.ours / row.peer)
        assert row.unit == "tokens/s"
    assert all(0 < row.ours < 1 and row.unit == "share" for row in rows[2:])
    assert capsys.readouterr().out == "", "the standard output belongs to `mlpt bench --json`"
