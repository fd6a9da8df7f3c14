"""The benchmark of sweeps: how the overhead of a trial is told apart, and both sides at a small scale."""

import pytest

from mlpt.bench import sweep
from mlpt.bench.sweep import Span, overheads


def test_a_trials_overhead_counts_from_its_predecessors_end():
    one_process = [Span(0, 10, 8), Span(11, 20, 9), Span(20.5, 30, 7)]
    assert overheads(one_process) == pytest.approx([10 - 9, 10 - 7])


def test_trials_side_by_side_are_followed_by_what_started_when_they_ended():
    first, second = Span(0, 10, 8), Span(0, 14, 12)
    after_first, after_second = Span(10.5, 20, 8), Span(15, 25, 9)
    assert overheads([after_second, second, after_first, first]) == pytest.approx([20 - 10 - 8, 25 - 14 - 9])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_sides_run_and_are_compared_in_trials_a_minute(capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Document {n} says {'this and that ' * (n % 7 + 3)}" for n in range(900)))
    tiny = ["data.vocab_size=200", "data.block_size=32", "model.hidden_size=32", "model.layers=1", "model.heads=2"]
    more = ["train.batch_size=8", "train.evaluate_batches=2", "meta.rules.mixture={rule: uniform}"]
    rows = sweep.run(trials=3, tokens=2_000, settings=[f"data.source={text}", *tiny, *more])
    assert [row.unit for row in rows] == ["trials/min", "s"]
    assert rows[0].ratio == pytest.approx(rows[0].ours / rows[0].peer)
    assert rows[1].ours > 0
    assert capsys.readouterr().out == "", "the standard output belongs to `mlpt bench --json`"
