"""A run with a teacher on real Ray whose meta-learner, worker and driver are killed ends bit for bit as one that was
left alone, with one worker and with two."""

import os
import re
import signal

import psutil
import pytest
import torch
from real_runs import TEXT, TINY, metrics_of
from waiting import wait_until

from mlpt.storage.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

TEACHER = [
    "objectives={mlm: {}, teacher_made: {teacher: inputs, network: "
    "{hidden_size: 16, layers: 1, heads: 2, intermediate_size: 32, positions: 32}}}",
    *("meta.target=mlm", "meta.interval=4", "meta.lag=2"),
    "meta.rules={mixture: {rule: fixed, weights: {teacher_made: 1}}, "
    "teacher: {rule: teacher_hard, baseline: 0.5, entropy: 0.01, optimizer: {lr: 0.01}}}",
    *("train.steps=200", "train.micro_batch_size=4", "train.checkpoint_every=20", "train.log_every=1"),
]
KILLED_AT = {"meta_learner": 24, "rank_0": 60, "driver": 100}  # the steps after which they are


def ends(run):
    """All tensors of the last checkpoint: the model's, and the teacher's beside it."""
    tensors = Checkpoints(run / "checkpoints").latest(print).tensors
    assert "policy/teacher/weights" in tensors["outer"]
    return tensors["model"] | {f"outer/{name}": one for name, one in tensors["outer"].items()}


def reached(run, step):
    return lambda: any(line["step"] >= step for line in metrics_of(run))


def losses(run):
    return [(line["step"], line["loss"]) for line in metrics_of(run) if "loss" in line]


def process_of(log):
    return int(re.findall(r"process (\d+)", log.read_text())[-1])


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_every_way_it_ends_bit_equal(mlpt, tiny_text, tmp_path, workers):
    words = [word for word in TINY if not word.startswith(("objectives.", "meta.", "train.log_every"))]
    words = [f"data.source={tiny_text}", *TEXT, *words, *TEACHER, f"runtime.num_workers={workers}"]
    code, output = mlpt.run("pretrain", *words, f"run_dir={tmp_path / 'whole'}")
    assert code == 0, output
    run = tmp_path / "killed"
    driver = mlpt.start("pretrain", *words, f"run_dir={run}")
    for who, step in KILLED_AT.items():
        wait_until(reached(run, step))
        if who == "driver":
            break
        os.kill(process_of(run / "logs" / f"{who}.log"), signal.SIGKILL)
    worker = process_of(run / "logs" / "rank_0.log")
    driver.kill()
    driver.wait()
    wait_until(lambda: not psutil.pid_exists(worker))  # Ray ends the orphan
    assert not (run / "summary.json").exists()
    code, output = mlpt.run("pretrain", "--resume", run)
    assert code == 0, output
    assert "resumed at step" in output
    ours, theirs = ends(tmp_path / "whole"), ends(run)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert losses(tmp_path / "whole") == losses(run)
