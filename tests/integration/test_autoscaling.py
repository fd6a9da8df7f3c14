"""Autoscaling shown: a cluster with no nodes grows for a run with two workers and a meta-learner, and shrinks again."""

import json
import threading
import time

import pytest
from ray_heads import Head, nodes_of_one_cpu
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_nodes_come_for_the_quickstart_and_go_when_it_is_done(tmp_path, tiny):
    head = Head(tmp_path, cpus=0, autoscaling=nodes_of_one_cpu(most=4))
    try:
        assert head.count_nodes() == 0
        jobs = []
        words = ("pretrain", "quickstart", *tiny, f"run_dir={tmp_path / 'run'}", "train.steps=60")
        more = ("runtime.num_workers=2", "runtime.address=auto")
        # No working directory: these nodes share one machine, and one that goes removes the copy that others stand in.
        thread = threading.Thread(
            target=lambda: jobs.append(head.job("python", "-m", "mlpt", *words, *more, submit=()))
        )
        thread.start()
        most = 0
        while thread.is_alive():
            most = max(most, head.count_nodes())
            time.sleep(1)
        assert jobs[0].returncode == 0, jobs[0].stdout + jobs[0].stderr
        # One CPU each for two workers and the meta-learner; a busy autoscaler may count one that is just placed twice.
        assert 3 <= most <= 4, f"{most} nodes came"
        assert "waiting for the cluster to grow" in jobs[0].stdout
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 60
        wait_until(lambda: head.count_nodes() == 0, every=1)
    finally:
        head.close()
