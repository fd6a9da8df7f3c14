"""`ray job submit -- mlpt pretrain` against a head of the test's own, as the documentation tells people to."""

import json
import re

import psutil
import pytest
from ray_heads import Head
from real_runs import REPOSITORY, metrics_of
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head with room for two workers and the meta-learner."""
    head = Head(tmp_path_factory.mktemp("head"), cpus=3)
    yield head
    head.close()


def test_a_job_trains_on_the_cluster_and_its_logs_and_exit_code_come_back(head, tiny, tmp_path):
    run = tmp_path / "run"
    job = head.job(
        *("python", "-m", "mlpt", "pretrain", "quickstart", *tiny, f"run_dir={run}"),
        *("train.steps=40", "runtime.num_workers=2", "runtime.address=auto"),
    )
    assert job.returncode == 0, job.stdout + job.stderr
    assert "held-out loss on the test split" in job.stdout
    assert json.loads((run / "summary.json").read_text())["steps"] == 40
    assert (run / "model" / "model.safetensors").is_file()


def test_a_job_with_a_wrong_setting_fails_with_one_line_in_its_logs(head):
    job = head.job("python", "-m", "mlpt", "pretrain", "train.stepps=40")
    assert job.returncode == 1
    assert "unknown setting 'train.stepps'; did you mean 'train.steps'?" in job.stdout
    assert "Traceback" not in job.stdout


def test_a_job_without_the_token_is_refused(head):
    refused = head.ask("list", environment={"RAY_AUTH_MODE": "disabled"})
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "authentication" in (refused.stdout + refused.stderr).lower()
    assert head.ask("list").returncode == 0


def test_a_stopped_job_is_resumed_by_another(head, tiny, tmp_path):
    run = tmp_path / "run"
    submitted = head.job(
        *("python", "-m", "mlpt", "pretrain", "quickstart", *tiny, f"run_dir={run}", "train.steps=1000000"),
        *("train.checkpoint_every=20", "runtime.address=auto", "train.schedule.shape=constant"),
        submit=("--working-dir", str(REPOSITORY), "--no-wait", "--submission-id", "first"),
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    wait_until(lambda: list(run.glob("checkpoints/step_*/COMMITTED")))
    assert head.ask("stop", "first").returncode == 0
    assert "was stopped" in head.ask("status", "first").stdout
    worker = int(re.findall(r"process (\d+)", (run / "logs" / "rank_0.log").read_text())[-1])
    wait_until(lambda: not psutil.pid_exists(worker))  # it trains, and saves, for a moment longer than its driver
    reached = max(int(path.parent.name.removeprefix("step_")) for path in run.glob("checkpoints/step_*/COMMITTED"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("steps: 1000000", f"steps: {reached + 20}"))
    resumed = head.job("python", "-m", "mlpt", "pretrain", "--resume", run)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"resumed at step {reached}" in resumed.stdout
    steps = [line["step"] for line in metrics_of(run) if "loss" in line]
    assert steps == sorted(set(steps)), "a step stands twice in the metrics"
    assert steps[-1] == reached + 20
