"""The fine-tuning benchmark runs all sides and reports what it measured; no figure is judged here."""

import pytest

from mlpt.bench import finetune


def test_the_fine_tuning_benchmark_reports_both_ways_of_padding(monkeypatch, capsys):
    monkeypatch.delenv("MLPT_SHARED_DATA", raising=False)
    small = {
        "LAYERS": 1,
        "HIDDEN": 32,
        "VOCABULARY": 400,
        "BATCH": 4,
        "LENGTH": 48,
        "ROWS": 64,
        "STEPS": 2,
        "ROUNDS": 1,
    }
    for name, value in small.items():
        monkeypatch.setattr(finetune, name, value)
    rows = finetune.run()
    assert [row.name for row in rows] == [
        "docs_package, against Trainer padded to 48",
        "docs_package, against Trainer's dynamic padding",
    ]
    for row in rows:
        assert row.ratio == pytest.approx(row.ours / row.peer)
        assert row.unit == "examples/s"
    assert capsys.readouterr().out == "", "the standard output belongs to `mlpt bench --json`"
