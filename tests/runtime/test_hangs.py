"""What stands still is ended, with its stacks written down; what computes, rests, is slow or was stopped is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlpt.runtime import hangs
from mlpt.runtime.hangs import Roll, Watch
from mlpt.runtime.hub import Hub

WAITS = """
import sys, threading
from pathlib import Path
from mlpt.runtime.hangs import Watch

def waits_for_ever():
    threading.Event().wait()

with Watch(0.5, "rank 3", Path(sys.argv[1]), tell=lambda text: print(text, flush=True)) as watch:
    watch.beat()
    waits_for_ever()
"""


def test_a_thread_that_waits_for_ever_ends_its_process_with_its_stacks(tmp_path):
    script, log = tmp_path / "mlpt" / "script.py", tmp_path / "rank.log"  # a place of this package
    script.parent.mkdir()
    script.write_text(WAITS)
    words = [sys.executable, str(script), str(log)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 75
    assert done.stdout.startswith("rank 3 has stood still for ")
    assert "in waits_for_ever (script.py:" in done.stdout
    assert "waits_for_ever" in log.read_text()


class Clock:
    """Stands in for the clocks that a watch reads."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self.computed = 0.0
        monkeypatch.setattr(hangs.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(hangs, "_cpu_seconds", lambda: self.computed)

    def pass_by(self, watch, seconds, busy=0.0):
        """What a watch says that looks every second meanwhile, while threads compute with so much of a core."""
        for _ in range(seconds):
            self.now += 1
            self.computed += busy
            if watch.look():
                return True
        return False


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def watch(**settings):
    found = Watch(10, "rank 0", Path("unused"), **settings)
    found.beat()
    return found


def test_who_computes_has_ten_times_as_long(clock):
    computing = watch()
    assert not clock.pass_by(computing, 99, busy=0.5)
    assert clock.pass_by(computing, 2, busy=0.5)
    idle = watch()
    assert not clock.pass_by(idle, 10, busy=0.01)
    assert clock.pass_by(idle, 1, busy=0.01)


def test_who_has_gone_on_after_long_waits_may_wait_so_long_again(clock):
    slow = watch()
    for _ in range(3):
        assert not clock.pass_by(slow, 8)
        slow.beat()
    assert not clock.pass_by(slow, 80)
    assert clock.pass_by(slow, 1)
    changed = watch()
    assert not clock.pass_by(changed, 8)
    changed.begin()  # what was done before tells nothing of what comes
    assert not clock.pass_by(changed, 10)
    assert clock.pass_by(changed, 1)


def test_who_waits_for_others_that_go_on_is_left_alone(clock):
    others = [0.0]
    waiting = watch(group=lambda: others[0])
    assert not clock.pass_by(waiting, 50)
    others[0] = 9.0
    assert clock.pass_by(waiting, 1)


def test_nothing_is_due_of_who_rests_or_was_stopped(clock):
    resting = watch()
    resting.rest()
    assert not clock.pass_by(resting, 1000)
    stopped = watch()
    assert not clock.pass_by(stopped, 5)
    clock.now += 500
    assert not clock.pass_by(stopped, 5)
    assert clock.pass_by(stopped, 2)


def test_slow_storage_is_as_good_as_work(clock, monkeypatch):
    monkeypatch.setattr(hangs, "_in_storage", lambda thread: True)
    assert not clock.pass_by(watch(slow_storage=True), 100)
    assert clock.pass_by(watch(), 11)


def test_a_silent_rank_is_missed_once_and_a_new_group_begins_anew(clock):
    clock.now = 0.0
    roll = Roll(limit=10)
    roll.alive(0, 100, still=0)
    roll.alive(1, 101, still=0)
    clock.now = 8
    roll.alive(0, 100, still=2)
    assert roll.still() == 2
    clock.now = 12
    assert roll.missed() == ["rank 1 (process 101) has not been heard of for 10 s; its group starts again"]
    clock.now = 30  # the other rank ends, too: that is no news
    assert roll.missed() == []
    assert roll.silence() == 22
    roll.alive(1, 102, still=0)
    roll.alive(0, 103, still=5)  # a new group
    clock.now = 39
    roll.alive(0, 103, still=14)
    assert roll.missed() == []
    assert roll.still() == 14
    clock.now = 50
    assert roll.missed() == ["rank 0 (process 103) has not been heard of for 10 s; its group starts again"]


def test_a_group_that_a_rank_ends_is_not_missed(clock):
    roll = Roll(limit=10)
    roll.alive(0, 100, still=11)
    roll.ends()
    clock.now += 11
    assert roll.missed() == []
    assert Roll(None).missed() == []


def test_the_hub_names_who_is_missed_before_those_who_wait_for_it(clock):
    hub = Hub(hang_timeout=10)
    hub.alive(0, 100, 0)
    hub.alive(1, 101, 0)
    clock.now += 11
    hub.alive(0, 100, 11)
    hub.ending("rank 0 (process 100) has stood still for 11 s")
    said = [event["text"] for event in hub.drain()]
    missed = "rank 1 (process 101) has not been heard of for 10 s; its group starts again"
    assert said == [missed, "rank 0 (process 100) has stood still for 11 s"]
    clock.now += 100
    assert hub.drain() == []
