"""Processes of Ray itself die under a run, or a file outside checkpoints cannot be written: one line, the way on."""

import contextlib
import os
import shlex
import signal

import psutil
import pytest
from real_runs import metrics_of
from waiting import wait_until

pytestmark = pytest.mark.timeout(900)

STEPS = ["train.steps=1000000", "train.checkpoint_every=20"]


def begun(mlpt, run, *words):
    """The process of a run that has a checkpoint."""
    process = mlpt.start("pretrain", *words, *STEPS, f"run_dir={run}")
    wait_until(lambda: list(run.glob("checkpoints/*/COMMITTED")) or process.poll() is not None)
    assert process.poll() is None, mlpt.output()
    return process


def last_line(mlpt):
    """The one line that tells of the end; there is nothing of Ray's own log around it."""
    output = mlpt.output()
    assert "(raylet)" not in output
    assert "Traceback" not in output
    assert sum(line.startswith("mlpt: ") for line in output.splitlines()) == 1, output
    return output.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process_name", "name"),
    [("raylet", "raylet"), ("gcs_server", "GCS"), ("ray::RuntimeEnvAgent", "RuntimeEnvAgent")],
)
def test_rays_death_is_one_line_and_leaves_nothing_behind(mlpt, tiny, tmp_path, process_name, name):
    run = tmp_path / "run"
    process = begun(mlpt, run, *tiny)
    started = psutil.Process(process.pid).children(recursive=True)
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):  # some of Ray's live for a moment only
            if one.name().endswith("Agent"):
                one.suspend()  # it cannot see its raylet die; at work, it may hang on telling the GCS that died, too
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == process_name:
                one.kill()
    assert process.wait(timeout=300) == 2, mlpt.output()
    assert last_line(mlpt) == (
        f"mlpt: Ray's {name} has died, and with it what ran on this Ray; go on by `mlpt pretrain --resume {run}`"
    )
    _, alive = psutil.wait_procs(started, timeout=300)
    assert alive == []
    assert metrics_of(run)


@pytest.mark.slow
def test_before_the_first_checkpoint_rays_death_names_the_command_that_begins_again(mlpt, tiny, tmp_path):
    run = tmp_path / "run"
    process = mlpt.start("pretrain", *tiny, "train.steps=1000000", "train.checkpoint_every=1000000", f"run_dir={run}")
    wait_until(lambda: (run / "metrics.jsonl").is_file() or process.poll() is not None)
    for one in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == "raylet":
                one.kill()
    assert process.wait(timeout=300) == 2, mlpt.output()
    assert last_line(mlpt).endswith(f"go on by `mlpt pretrain --resume {run} --restart`")


@pytest.mark.slow
def test_a_signal_to_all_processes_at_once_is_one_line_and_its_exit_code(mlpt, tiny, tmp_path):
    run = tmp_path / "run"
    process = begun(mlpt, run, *tiny)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=300) == 143, mlpt.output()
    assert last_line(mlpt).endswith(f"go on by `mlpt pretrain --resume {run}`")
    _, alive = psutil.wait_procs(started, timeout=300)
    assert alive == []


@pytest.mark.slow
def test_a_policy_that_cannot_be_written_is_one_line_with_the_way_on(mlpt, tiny, tmp_path):
    run = tmp_path / "run"
    process = begun(mlpt, run, *tiny)
    aside = run / "policies"
    aside.rename(run / "aside")
    aside.write_text("in the way")
    assert process.wait(timeout=300) == 2, mlpt.output()
    line = last_line(mlpt)
    assert "policies" in line
    aside.unlink()
    (run / "aside").rename(aside)
    way_on = shlex.split(line.rpartition("`mlpt ")[2].rstrip("`"))
    assert way_on == ["pretrain", "--resume", str(run)]
