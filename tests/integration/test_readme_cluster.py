"""README's cluster on this machine starts beside a run that is under way here, and its end leaves that run alone."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from real_runs import REPOSITORY, metrics_of
from waiting import wait_until

USUAL = {"port": 6379, "dashboard-port": 8265, "dashboard-agent-listen-port": 52365}  # of Ray, where nothing is said


def start_of_the_head():
    """The words of README's `ray start`, and the ports among them by option."""
    (line,) = re.findall(r"^(ray start (?:.*\\\n)*.*)&$", (REPOSITORY / "README.md").read_text(), flags=re.MULTILINE)
    words = shlex.split(line.replace("\\\n", " ").partition(">")[0])
    return words, {name: int(value) for name, value in re.findall(r"--([\w-]*port)=(\d+)", line)}


def test_the_ports_of_the_readmes_cluster_are_none_that_a_local_run_takes():
    _, ports = start_of_the_head()
    assert {*USUAL, "metrics-export-port"} <= ports.keys()
    assert len(set(ports.values())) == len(ports)
    assert not set(ports.values()) & set(USUAL.values())


@pytest.mark.slow
def test_the_readmes_cluster_lives_and_ends_beside_a_local_run(mlpt, tiny, tmp_path):
    words, ports = start_of_the_head()
    run = tmp_path / "run"
    alone = mlpt.start("pretrain", *tiny, "train.steps=100000", f"run_dir={run}")
    wait_until(lambda: metrics_of(run) or alone.poll() is not None)
    token = tmp_path / "token"
    token.write_text("a" * 32)
    token.chmod(0o600)
    environment = {**mlpt.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    ray = str(Path(sys.executable).parent / "ray")
    with open(tmp_path / "head.log", "wb") as log:
        head = subprocess.Popen(
            [ray, *words[1:]], env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        listing = [ray, "job", "list", "--address", f"http://127.0.0.1:{ports['dashboard-port']}"]
        quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        wait_until(lambda: head.poll() is not None or subprocess.run(listing, **quiet).returncode == 0)
        assert head.poll() is None, (tmp_path / "head.log").read_text()
        started = psutil.Process(head.pid).children(recursive=True)
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=90)
        _, left = psutil.wait_procs(started, timeout=30)
        assert left == []
    finally:
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
    steps = len(metrics_of(run))
    wait_until(lambda: len(metrics_of(run)) > steps or alone.poll() is not None)
    assert alone.poll() is None, mlpt.output()
