"""One writer a result: who comes second is refused by the name of the first, and the dead hold nothing."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flaky_storage import Flaky

from mlpt.errors import UserError
from mlpt.outputs import LEASE, alone_in, lease, leased
from mlpt.outputs.lease import Folder
from mlpt.storage.store import Store

RACES = 50
PATIENCE_S = 60


def held_by_lease_alone(path: Path):
    """As two machines see a shared folder whose file system has no locks."""
    return leased(Folder(path), str(path))


def race(hold, folder: Path, start, won, refused) -> None:
    """One of two starters: a race a folder, all of which are there."""
    for number in range(RACES):
        start.wait(PATIENCE_S)
        try:
            with hold(folder / str(number)):
                won.append(number)
                start.wait(PATIENCE_S)  # the other one has tried too
        except UserError as error:
            refused.append(str(error))
            start.wait(PATIENCE_S)


@pytest.mark.parametrize("hold", [alone_in, held_by_lease_alone])
def test_of_two_that_start_at_once_exactly_one_wins(tmp_path, hold):
    for number in range(RACES):
        (tmp_path / str(number)).mkdir()
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        start, won, refused = context.Barrier(2), manager.list(), manager.list()
        racers = [context.Process(target=race, args=(hold, tmp_path, start, won, refused)) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(PATIENCE_S)
            assert racer.exitcode == 0
        assert sorted(won) == list(range(RACES))
        assert all(line.startswith(f"another process is writing to {tmp_path}/") for line in refused)
    assert list(tmp_path.rglob(f"{LEASE}*")) == []


HOLD = """
import sys
from pathlib import Path
from mlpt.outputs import alone_in, lease
lease._RENEWED_EVERY_S = float(sys.argv[2])
with alone_in(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds a folder, the folder; it ends with the test."""
    started = []

    def start(renewed_every: float = 15) -> tuple[subprocess.Popen, Path]:
        words = [sys.executable, "-c", HOLD, str(tmp_path), str(renewed_every)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(words, text=True, **pipes))
        assert started[-1].stdout.readline() == "mine\n"
        return started[-1], tmp_path

    yield start
    for process in started:
        process.kill()
        process.communicate()


def the_lease(folder: Path) -> dict:
    (file,) = folder.glob(f"{LEASE}*.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("hold", [alone_in, held_by_lease_alone])
def test_who_comes_second_is_told_who_was_first(holder, hold):
    process, folder = holder()
    since = re.escape(the_lease(folder)["since"])
    says = rf"^another process is writing to {folder} \(process {process.pid} on .+, since {since}\); wait for it, or "
    with pytest.raises(UserError, match=says), hold(folder):
        pass


@pytest.mark.parametrize("hold", [alone_in, held_by_lease_alone])
def test_what_a_dead_owner_held_is_taken_over_at_once(holder, hold):
    process, folder = holder()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with hold(folder):
        assert the_lease(folder)["process"] == os.getpid()
    assert list(folder.iterdir()) == []


def test_the_number_of_a_dead_owner_given_to_another_process_does_not_keep_it_alive(holder):
    process, folder = holder()
    (file,) = folder.glob(f"{LEASE}*.json")
    process.kill()
    process.wait()
    file.write_text(json.dumps({**json.loads(file.read_text()), "process": os.getpid()}))
    with held_by_lease_alone(folder):
        pass


def of_another_machine(folder: Path, seconds_left: float) -> None:
    owner = {"owner": "x", "host": "elsewhere", "machine": "elsewhere", "process": os.getpid(), "since": "noon"}
    content = json.dumps({**owner, "born": 0, "expires": time.time() + seconds_left})
    (folder / f"{LEASE}000007.json").write_text(content)


def test_a_lease_of_another_machine_holds_until_it_ends(tmp_path):
    of_another_machine(tmp_path, 1000)
    says = rf"process {os.getpid()} on elsewhere, since noon\).*; should it have died, it is over in (999|1000) s"
    with pytest.raises(UserError, match=says), alone_in(tmp_path):
        pass
    of_another_machine(tmp_path, -1)
    with alone_in(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [f"{LEASE}000008.json"]


@pytest.mark.parametrize("content", ["", '{"owner": "x", "ho', "{}", "[1]"])
@pytest.mark.parametrize("hold", [alone_in, held_by_lease_alone])
def test_a_lease_that_a_crash_has_cut_holds_as_long_as_any(tmp_path, hold, content):
    cut = tmp_path / f"{LEASE}000007.json"
    cut.write_text(content)
    says = rf"^another process is writing to {tmp_path}; wait for it, or .*; should it have died, it is over in \d+ s"
    with pytest.raises(UserError, match=says), hold(tmp_path):
        pass
    long_ago = time.time() - lease.LASTS_S - 1
    os.utime(cut, (long_ago, long_ago))
    with hold(tmp_path):
        assert the_lease(tmp_path)["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_is_written_whole_where_the_system_writes_less_at_a_time(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:7]))
    with held_by_lease_alone(tmp_path):
        assert the_lease(tmp_path)["process"] == os.getpid()


def test_a_cut_lease_at_a_uri_is_over_in_time(flaky, monkeypatch):
    store = Store("flaky://bucket/run")
    store.write(f"{LEASE}000007.json", b"")
    with pytest.raises(UserError, match="should it have died, it is over in"), leased(store, store.uri):
        pass
    monkeypatch.setattr(lease, "LASTS_S", 0.5)
    time.sleep(0.6)
    with leased(store, store.uri):
        pass
    assert store.names("") == []


def test_a_lease_is_renewed(holder):
    _, folder = holder(renewed_every=0.02)
    first, deadline = the_lease(folder)["expires"], time.monotonic() + PATIENCE_S
    while the_lease(folder)["expires"] == first:
        assert time.monotonic() < deadline


def test_an_owner_that_was_succeeded_ends_with_one_line(holder):
    process, folder = holder(renewed_every=0.05)
    of_another_machine(folder, 1000)
    assert process.wait(PATIENCE_S) == 2
    assert process.stderr.read() == (
        f"mlpt: process {os.getpid()} on elsewhere has taken over {folder}, as this process did not renew its lease in "
        "time\n"
    )
    assert f"{LEASE}000007.json" in {path.name for path in folder.iterdir()}


def test_a_lease_at_a_uri_outlasts_storage_that_is_away_for_a_moment(flaky, monkeypatch):
    monkeypatch.setattr(lease, "_RENEWED_EVERY_S", 0.01)
    store = Store("flaky://bucket/run")
    with leased(store, store.uri):
        (name,) = store.names("")
        first = store.read(name)
        calls = len(Flaky.calls)
        flaky.fail(on=LEASE)
        deadline = time.monotonic() + PATIENCE_S
        while len(Flaky.calls) < calls + 10:
            assert time.monotonic() < deadline
        flaky.heal()
        while store.read(name) == first:
            assert time.monotonic() < deadline
    assert store.names("") == []
