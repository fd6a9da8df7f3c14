"""The benchmark of self-evolution learning measures all it names; no figure is judged here."""

import pytest

from mlpt.bench import question


def test_the_question_benchmark_reports_every_pair(monkeypatch, capsys):
    small = {"TEXT_BYTES": 400_000, "VOCABULARY": 512, "LENGTH": 16, "BATCH": 4, "LAYERS": 1, "HIDDEN": 32}
    for name, value in {**small, "ROUNDS": 1, "QUESTIONED": 8, "CORRUPTIONS": 2, "INTERVAL": 3}.items():
        monkeypatch.setattr(question, name, value)
    rows = question.run()
    assert [row.unit for row in rows] == ["s"] + ["tokens/s"] * 4 + ["bytes"] + ["s"] * 4
    for row in rows:
        assert row.ours > 0
        assert row.ratio == pytest.approx(row.ours / row.peer if row.unit == "tokens/s" else row.peer / row.ours)
    assert capsys.readouterr().out == "", "the standard output belongs to `mlpt bench --json`"
