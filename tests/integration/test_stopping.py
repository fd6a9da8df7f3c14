"""SIGINT and SIGTERM: a checkpoint at the end of the step, a line with the command that goes on, the exit code."""

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
from real_runs import TEXT, TINY, metrics_of
from waiting import wait_until

IN_PROCESS = "runtime.num_workers=0"
SETTINGS = [*TINY, "train.steps=60", "train.log_every=1", "train.checkpoint_every=1000", "report.progress=lines"]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def losses(run):
    kept = ("step", "loss", "held_out", "held_out_before", "mixture", "policy")
    return [tuple(json.dumps(line.get(key)) for key in kept) for line in metrics_of(run)]


@pytest.fixture(scope="module")
def undisturbed(small_blocks, tmp_path_factory):
    from mlpt.run.launch import pretrain
    from mlpt.settings import parse_overrides

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    words = [*SETTINGS, IN_PROCESS, f"data.source={small_blocks}", f"run_dir={run}", "report.progress=off"]
    return losses(pretrain(None, parse_overrides(words)).folder)


def stop(mlpt, run, number, *words):
    """Start a run, send it `number` while it trains, and return its exit code."""
    process = mlpt.start("pretrain", *SETTINGS, f"run_dir={run}", *words)
    wait_until(lambda: process.poll() is not None or any("loss" in line for line in metrics_of(run)), timeout=240)
    assert process.poll() is None, mlpt.output()
    os.kill(process.pid, number)
    return process.wait(timeout=120)


def goes_on(mlpt, run, number, undisturbed, *words):
    """What is said and left behind by a run that a signal has stopped; then it goes on to the undisturbed end."""
    last = mlpt.output().strip().splitlines()[-1]
    (saved,) = (int(path.parent.name.removeprefix("step_")) for path in run.glob("checkpoints/step_*/COMMITTED"))
    assert last.startswith(f"mlpt: {signal.Signals(number).name} has stopped the run after step {saved}; go on by ")
    assert shlex.split(last.split("`")[1]) == ["mlpt", "pretrain", "--resume", str(run)]
    assert max(line["step"] for line in metrics_of(run)) == saved < 60
    assert "Traceback" not in mlpt.output()
    code, output = mlpt.run("pretrain", "--resume", run, *words)
    assert code == 0, output
    assert f"resumed at step {saved}" in output
    assert losses(run) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_the_step_and_says_how_to_go_on(mlpt, small_blocks, tmp_path, undisturbed, number):
    run = tmp_path / "a run"
    assert stop(mlpt, run, number, f"data.source={small_blocks}", IN_PROCESS) == CODES[number], mlpt.output()
    goes_on(mlpt, run, number, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_a_signal_does_the_same_on_ray(mlpt, small_blocks, tmp_path, undisturbed, number, workers):
    run = tmp_path / "run"
    words = (f"data.source={small_blocks}", f"runtime.num_workers={workers}")
    assert stop(mlpt, run, number, *words) == CODES[number], mlpt.output()
    if workers == 1:
        goes_on(mlpt, run, number, undisturbed, IN_PROCESS)
    else:  # another world size adds in another order
        assert mlpt.output().strip().splitlines()[-1].startswith("mlpt: SIGINT has stopped the run after step")
        code, output = mlpt.run("pretrain", "--resume", run)
        assert code == 0, output
        assert "resumed at step" in output


def test_a_signal_before_training_ends_the_run_at_once(mlpt, tiny_text, tmp_path):
    run = tmp_path / "run"
    process = mlpt.start("pretrain", *TEXT, *SETTINGS, IN_PROCESS, f"data.source={tiny_text}", f"run_dir={run}")
    wait_until(lambda: "run: " in mlpt.output())
    os.kill(process.pid, signal.SIGTERM)
    code = process.wait(timeout=120)
    assert code == 143, mlpt.output()
    last = mlpt.output().strip().splitlines()[-1]
    if list(run.glob("checkpoints/step_*/COMMITTED")):  # the text was ready before the signal came
        assert "has stopped the run after step" in last
    else:
        assert last == "mlpt: SIGTERM has stopped the run before its first checkpoint; go on by the same command"
        assert not run.exists()


STUBBORN = """
import os, signal, sys, time
from mlpt.stopping import StopRequest
stop = StopRequest(lambda text: print(text, flush=True))
with stop.listening(), stop.training():
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop() and stop.name == "SIGTERM"
    print("training on", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        time.sleep(1)
"""


def test_a_second_signal_ends_at_once_however_long_a_step_takes(mlpt):
    done = subprocess.run(
        [sys.executable, "-c", STUBBORN], env=mlpt.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130
    first, second = done.stdout.splitlines()
    assert "once more ends at once" in first
    assert second == "training on"
    assert done.stderr == ""
