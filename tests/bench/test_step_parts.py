"""The benchmark of the step's parts runs both sides of each; no figure is judged here."""

import pytest
from test_step import shrink

from mlpt.bench import step_parts


def test_each_part_of_the_step_is_compared_with_the_step_without_it(monkeypatch):
    shrink(monkeypatch)
    monkeypatch.setattr(step_parts, "ROWS", 100)
    monkeypatch.setattr(step_parts, "why_not_compile", lambda device: "compiling takes a minute")
    rows = step_parts.run()
    assert len(rows) == 2
    for row in rows:
        assert row.ratio == pytest.approx(row.ours / row.peer)
        assert row.unit == "1/s"
