"""The plan of the soak over every kind of work, and what it compares."""

import itertools
import json
import os
import random
import signal
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlpt.bench import faults, kinds_of_fault, kinds_of_work
from mlpt.bench.faults import plan
from mlpt.bench.kinds_of_work import end_of, progress


@pytest.fixture
def works(tmp_path):
    return kinds_of_work.every_kind(tmp_path, "blocks")


def test_sixty_faults_meet_every_kind_of_work_and_more_than_twelve_kinds_of_fault(works):
    begun = list(itertools.islice(plan(works, seed=0), 12))
    assert {work.name for work, _, _ in begun} == {work.name for work in works}
    struck = [fault for _, chosen, _ in begun for fault in chosen]
    assert len(struck) == 60
    assert len({fault.name for fault in struck}) >= 20
    assert all(fault.fits(work) for work, chosen, _ in begun for fault in chosen)


def test_a_work_meets_each_fault_that_fits_before_one_comes_again(works):
    first = works[1]  # pretraining: nearly all fit it
    fitting = [fault.name for fault in kinds_of_fault.every_kind() if fault.fits(first)]
    runs = itertools.islice(plan(works, seed=3), 1, len(works) * 4, len(works))
    met = [fault.name for _, chosen, _ in runs for fault in chosen]
    assert len(set(met[: len(fitting)])) == min(len(met), len(fitting))


def test_a_plan_is_the_same_each_time(works):
    one, two = (
        [(work.name, [fault.name for fault in chosen], draw.random()) for work, chosen, draw in found]
        for found in (itertools.islice(plan(works, seed=5), 10) for _ in range(2))
    )
    assert one == two


def test_ends_differ_by_one_bit_of_a_tensor_or_a_loss_and_not_by_times(tmp_path):
    ends = []
    for name, loss, tensor, seconds in (
        ("a", 0.5, b"\0", 1),
        ("b", 0.5, b"\0", 2),
        ("c", 0.5, b"\1", 1),
        ("d", 0.6, b"\0", 1),
    ):
        out = tmp_path / name
        (out / "model").mkdir(parents=True)
        (out / "checkpoints").mkdir()
        (out / "checkpoints" / "model.safetensors").write_bytes(name.encode())
        (out / "model" / "model.safetensors").write_bytes(tensor)
        lines = [{"step": step, "loss": loss, "seconds": seconds} for step in (1, 2)]
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert progress(out) == 2
        ends.append(end_of(out))
    first, same, tensor_differs, loss_differs = ends
    assert first == same
    assert first != tensor_differs
    assert first != loss_differs


def test_sweeps_are_compared_by_their_points_whatever_their_trials_are_called(tmp_path):
    ends = []
    for name, values in (("a", (1.0, 2.0)), ("b", (2.0, 1.0)), ("c", (1.0, 2.5))):
        out = tmp_path / name
        for number, value in enumerate(values):
            trial = out / "trials" / f"{name}{number}"
            trial.mkdir(parents=True)
            (trial / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": value}) + "\n")
        rows = [{"trial_id": f"{name}{n}", "parameter/lr": value, "dev": value} for n, value in enumerate(values)]
        pq.write_table(pa.Table.from_pylist(rows), out / "trials.parquet")
        ends.append(end_of(out))
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


WORK = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[1])
out.mkdir(exist_ok=True)
metrics = out / "metrics.jsonl"
step = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
try:
    while step < 60:
        step += 1
        with open(metrics, "a") as file:
            file.write('{"step": %d}\\n' % step)
        time.sleep(0.02)
except KeyboardInterrupt:
    print("mlpt: stopped")
    sys.exit(130)
"""


@pytest.fixture
def disturbed(tmp_path, monkeypatch):
    """Work that counts to 60; `seen` are its steps at the moments that a test asks for."""
    monkeypatch.setattr(faults, "_mlpt", lambda words: [sys.executable, "-c", WORK, *words])
    work = kinds_of_work.Work("counting", ("{out}",), ("{out}",))
    victim = kinds_of_fault.Victim(work, tmp_path / "disk" / "out", "mark")
    victim.out.parent.mkdir()
    one = faults.Disturbed(victim, {**os.environ, "MLPT_SOAK": "mark"}, tmp_path / "said.txt", total=60)
    monkeypatch.setattr(one, "_wait_for_a_moment", lambda draw, share: "at once")
    yield one
    one.close()


def once_at_step_20(strike):
    """Does that to the work as soon as it is so far."""

    def struck(victim, draw):
        while progress(victim.out) < 20:
            time.sleep(0.001)
        return strike(victim, draw)

    return struck


def test_a_command_that_was_killed_is_waited_for_until_it_makes_a_step_that_was_not_made_before(disturbed, monkeypatch):
    seen = []
    further = disturbed._further_than

    def noted(*given, **named):
        seen.append(progress(disturbed._victim.out))
        code = further(*given, **named)
        seen.append(progress(disturbed._victim.out))
        return code

    monkeypatch.setattr(disturbed, "_further_than", noted)
    kill = once_at_step_20(kinds_of_fault._command(signal.SIGKILL))
    (struck,) = disturbed.endure([kinds_of_fault.Fault("killed", kill, (-signal.SIGKILL,))], random.Random(0))
    killed, after, _, end = seen
    assert 20 <= killed < after
    assert (struck.code, struck.found, end) == (-signal.SIGKILL, "", 60)


def test_a_process_that_hides_its_environment_is_one_of_the_works_all_the_same(disturbed, monkeypatch):
    hide = "import os, sys; os.execve(sys.executable, [sys.executable, '-c', *sys.argv[1:]], {})"
    monkeypatch.setattr(faults, "_mlpt", lambda words: [sys.executable, "-c", hide, WORK, *words])
    kill = once_at_step_20(lambda victim, draw: bool(victim.signal("python", signal.SIGKILL)))
    (struck,) = disturbed.endure([kinds_of_fault.Fault("killed", kill, (-signal.SIGKILL,))], random.Random(0))
    assert (struck.code, struck.found) == (-signal.SIGKILL, "")


def test_a_fault_that_finds_nothing_to_strike_is_not_counted(disturbed):
    nobody = kinds_of_fault.Fault("nobody, killed", kinds_of_fault._to("ray::Nobody", signal.SIGKILL))
    assert disturbed.endure([nobody], random.Random(0)) == []


def test_a_command_that_does_not_end_by_what_should_end_it_is_found(disturbed):
    deaf = once_at_step_20(lambda victim, draw: True)
    (struck,) = disturbed.endure([kinds_of_fault.Fault("nothing", deaf, (130,))], random.Random(0))
    assert "as if nothing had been" in struck.found


def test_an_interrupt_reaches_the_work_also_where_the_shell_has_it_ignored(disturbed, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = once_at_step_20(kinds_of_fault._command(signal.SIGINT))
        (struck,) = disturbed.endure([kinds_of_fault.Fault("SIGINT", stop, (130,))], random.Random(0))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (struck.code, struck.found) == (130, "")
