"""Replicas of the meta-learner as real actors: the losses are those of one process, whatever dies."""

import os
import re
import signal

import pytest
from real_runs import metrics_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WORDS = [
    *("meta.rules.mixture={rule: dga}", "meta.replicas=2", "meta.lookahead={engine: one_step, start: 10}"),
    *("train.steps=200", "train.log_every=1", "train.checkpoint_every=50"),
]


def learned(run):
    kept = ("step", "loss", "held_out", "mixture", "policy")
    return [tuple(repr(line.get(key)) for key in kept) for line in metrics_of(run)]


def test_replicas_repeat_the_run_of_one_process_and_a_killed_one_loses_nothing(mlpt, tiny, tmp_path):
    alone, run = tmp_path / "alone", tmp_path / "run"
    code, said = mlpt.run("pretrain", *tiny, *WORDS, f"run_dir={alone}", "runtime.num_workers=0")
    assert code == 0, said
    process = mlpt.start("pretrain", *tiny, *WORDS, f"run_dir={run}")
    log = run / "logs/meta_learner_1.log"
    wait_until(lambda: any(line["step"] >= 60 for line in metrics_of(run)), timeout=300)
    os.kill(int(re.findall(r"process (\d+)", log.read_text())[-1]), signal.SIGKILL)
    assert process.wait(timeout=600) == 0, mlpt.output()
    assert log.read_text().count("meta-learner ready") == 2
    assert "resumed at step" not in mlpt.output()
    assert learned(run) == learned(alone)
    assert len({repr(line["mixture"]) for line in metrics_of(run) if "mixture" in line}) > 10  # it was learned
