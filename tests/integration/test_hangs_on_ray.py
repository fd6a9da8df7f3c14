"""Processes of a run that hang, stopped or waiting for ever: the run ends with the losses of the undisturbed one."""

import json
import os
import re
import signal

import psutil
import pytest
from real_runs import Mlpt, metrics_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LIMIT = 15
WORDS = [
    *("meta.rules.mixture={rule: mometas}", "train.steps=300", "train.checkpoint_every=20", "train.log_every=1"),
    *("train.micro_batch_size=4", f"runtime.hang_timeout={LIMIT}", "runtime.max_failures=20"),
]
# Read by every Python that starts: rank 1 waits for ever before step 200, the first time.
WAITS = """
import os, sys, threading

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "mlpt.training.loop":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec
        spec = find_spec(name)
        execute = spec.loader.exec_module
        def executed(module):
            execute(module)
            patch(module.Loop)
        spec.loader.exec_module = executed
        return spec

def patch(Loop):
    train_step = Loop.train_step
    def until_stuck(loop):
        if loop.group.rank == 1 and loop.step == 200:
            try:
                os.close(os.open("{once}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                waits_for_ever()
        return train_step(loop)
    Loop.train_step = until_stuck

def waits_for_ever():
    threading.Event().wait()

sys.meta_path.insert(0, Finder())
"""

# Read likewise: what is written to a disk never gets there, once, as soon as the marker is there.
BLOCKS = """
import os, threading
synced = os.fsync
def fsync(file):
    try:
        os.remove("{marker}")
    except FileNotFoundError:
        return synced(file)
    threading.Event().wait()
os.fsync = fsync
"""


def undisturbed(tiny, folder, workers):
    """The losses of the run that nobody disturbs; one worker on Ray repeats the run in one process."""
    command = Mlpt(folder, folder / "cache")
    code, output = command.run(
        "pretrain", *tiny, *WORDS, f"runtime.num_workers={workers}", f"run_dir={folder / 'calm'}"
    )
    command.close()
    assert code == 0, output
    return losses(folder / "calm")


def losses(run):
    kept = ("step", "loss", "held_out", "held_out_before", "mixture", "policy")
    return [json.dumps([line.get(key) for key in kept]) for line in metrics_of(run)]


def reach(mlpt, process, run, step):
    """Wait until the run is there."""
    wait_until(lambda: any(line["step"] >= step for line in metrics_of(run)[-3:]) or process.poll() is not None, 300)
    assert process.poll() is None, mlpt.output()


def process_in(log):
    return int(re.findall(r"process (\d+)", log.read_text())[-1])


def stop_rank(run, rank):
    stopped = process_in(run / f"logs/rank_{rank}.log")
    os.kill(stopped, signal.SIGSTOP)
    return f"rank {rank} (process {stopped}) has not been heard of for {LIMIT} s; its group starts again"


def children(process, title):
    """The processes that `process` has started, of this title."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            found += [one] if title in " ".join(one.cmdline()) else []
        except psutil.Error:
            continue
    return found


def read_at_start(mlpt, tmp_path, code):
    """Let every Python that starts read `code` first."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(code)
    mlpt.environment["PYTHONPATH"] += f":{tmp_path / 'path'}"


def ended_well(mlpt, process):
    """What was said, on one line."""
    assert process.wait(timeout=400) == 0, mlpt.output()
    return " ".join(mlpt.output().split())


def test_a_worker_a_meta_learner_and_a_hub_that_are_stopped_cost_time_alone(mlpt, tiny, tmp_path):
    run = tmp_path / "run"
    process = mlpt.start("pretrain", *tiny, *WORDS, f"run_dir={run}")
    reach(mlpt, process, run, 50)
    missed = stop_rank(run, 0)
    reach(mlpt, process, run, 120)
    os.kill(process_in(run / "logs/meta_learner.log"), signal.SIGSTOP)
    reach(mlpt, process, run, 220)
    (hub,) = children(process, "ray::Hub")
    hub.send_signal(signal.SIGSTOP)
    assert missed in ended_well(mlpt, process)
    said = f"the meta-learner has not answered for {LIMIT} s: its process is ended"
    assert said in (run / "logs/rank_0.log").read_text()
    assert losses(run) == undisturbed(tiny, tmp_path, 0)


def test_ranks_that_are_stopped_or_wait_for_ever_cost_time_alone(mlpt, tiny, tmp_path):
    read_at_start(mlpt, tmp_path, WAITS.replace("{once}", str(tmp_path / "once")))
    run = tmp_path / "run"
    process = mlpt.start("pretrain", *tiny, *WORDS, f"run_dir={run}", "runtime.num_workers=2")
    reach(mlpt, process, run, 30)
    missed = stop_rank(run, 1)
    reach(mlpt, process, run, 100)
    missed_too = stop_rank(run, 0)
    output = ended_well(mlpt, process)
    assert missed in output
    assert missed_too in output
    assert re.search(r"rank 1 \(process \d+\) has stood still for \d+ s, in \w+ \(loop.py:\d+\)", output)
    assert "waits_for_ever" in (run / "logs/rank_1.log").read_text()
    assert losses(run) == undisturbed(tiny, tmp_path, 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_meta_learner_that_ends_or_stops_while_it_is_built_is_given_up_soon(mlpt, tiny, tmp_path, number):
    run = tmp_path / "run"
    process = mlpt.start("pretrain", *tiny, *WORDS, f"run_dir={run}")
    learner = wait_until(lambda: children(process, "MetaLearnerActor"))[0]
    learner.send_signal(number)
    ended_well(mlpt, process)
    log = run / "logs/meta_learner.log"
    assert f"process {learner.pid}" not in log.read_text()  # it was not ready
    assert losses(run) == undisturbed(tiny, tmp_path, 0)


def test_a_disk_that_blocks_is_named(mlpt, tiny, tmp_path):
    marker, run = tmp_path / "block", tmp_path / "run"
    read_at_start(mlpt, tmp_path, BLOCKS.replace("{marker}", str(marker)))
    process = mlpt.start("pretrain", *tiny, *WORDS, f"run_dir={run}")
    reach(mlpt, process, run, 30)
    marker.touch()
    output = ended_well(mlpt, process)
    assert not marker.exists()
    assert re.search(r"rank 0 \(process \d+\) has stood still for \d+ s, in join \(checkpoint.py:\d+\)", output)
    assert "_write_synced" in (run / "logs/rank_0.log").read_text()
    assert losses(run) == undisturbed(tiny, tmp_path, 0)
