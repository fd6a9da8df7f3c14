"""Progress of work that counts steps, on a terminal and in a file."""

import io

import pytest
from rich.console import Console

from mlpt.reporting import steps
from mlpt.reporting.steps import Steps


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_every_ten_seconds_with_the_time_left(clock):
    written = io.StringIO()
    with Steps(Console(file=written, width=40)) as shown:
        for done in range(1, 31):
            clock[0] += 1.0
            shown.show("mood [a], seed 1 (cell 2 of 9)", done, 90, "best accuracy 0.5")
    lines = written.getvalue().splitlines()
    assert len(lines) == 2  # after 10 and 20 seconds; never wrapped, and brackets are no markup
    assert lines[0] == "mood [a], seed 1 (cell 2 of 9): step 11/90, best accuracy 0.5, time left 1:19"


def test_another_piece_of_work_has_a_time_of_its_own(clock):
    written = io.StringIO()
    with Steps(Console(file=written, width=200)) as shown:
        shown.show("first", 1, 2)
        clock[0] += 1000
        shown.show("second", 1, 4)
        clock[0] += 10
        shown.show("second", 2, 4)
    assert written.getvalue() == "second: step 2/4, time left 0:20\n"


def test_a_terminal_gets_a_bar_that_goes_away(clock):
    written = io.StringIO()
    with Steps(Console(file=written, force_terminal=True, width=120)) as shown:
        shown.show("mood", 3, 10, "best accuracy 0.5")
        shown.clear()
    assert "3/10" in written.getvalue()
    assert "best accuracy 0.5" in written.getvalue()
