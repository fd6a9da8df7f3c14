"""Nodes that come, go and are about to go, under a run on a cluster of this machine's processes."""

import contextlib
import re
import signal
import subprocess

import pytest
from ray_heads import RAY, Head
from real_runs import metrics_of
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN = [
    *("train.steps=1000000", "train.log_every=1", "train.schedule.shape=constant", "runtime.meta_cpus=0"),
    "train.checkpoint_every=20",
]


@pytest.fixture
def head(tmp_path):
    """A head without CPUs: every worker needs a node."""
    head = Head(tmp_path, cpus=0)
    yield head
    head.close()


@pytest.fixture
def start(head, mlpt, tiny, tmp_path):
    """Start a run on the cluster; its folder and process."""

    def run(*words):
        mlpt.environment |= {name: value for name, value in head.environment.items() if name.startswith("RAY_AUTH")}
        folder = tmp_path / "run"
        more = (f"run_dir={folder}", f"runtime.address={head.address}")
        return folder, mlpt.start("pretrain", *tiny, *RUN, *more, *words)

    return run


def step_of(run):
    lines = []
    with contextlib.suppress(ValueError):  # the last line may be half written
        lines = metrics_of(run)
    return max((line["step"] for line in lines if "loss" in line), default=0)


def worlds_of(run):
    """World size at each start of rank 0."""
    log = run / "logs" / "rank_0.log"
    return [int(found) for found in re.findall(r"rank 0 of (\d+) on", log.read_text())] if log.is_file() else []


def reach(run, process, mlpt, condition):
    """Wait for something that the run does."""
    wait_until(lambda: condition() or process.poll() is not None)
    assert process.poll() is None, mlpt.output()


def check_all_steps(run, process, mlpt):
    """Let the run go on for some steps and stop it: each stands in its metrics once, and it ends with a checkpoint."""
    goal = step_of(run) + 50
    reach(run, process, mlpt, lambda: step_of(run) > goal)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143, mlpt.output()
    logged = [line["step"] for line in metrics_of(run) if "loss" in line]
    assert logged == list(range(1, logged[-1] + 1)), "a step is missing or stands twice"
    assert (run / "checkpoints" / f"step_{logged[-1]:08d}" / "COMMITTED").is_file()


def test_a_run_goes_on_when_its_node_is_lost_and_another_comes(head, start, mlpt):
    node = head.add_node(cpus=1)
    run, process = start()
    reach(run, process, mlpt, lambda: step_of(run) > 100)
    node.kill()
    reached = step_of(run)
    head.add_node(cpus=1)
    reach(run, process, mlpt, lambda: "resumed at step" in mlpt.output())
    check_all_steps(run, process, mlpt)
    resumed = [int(step) for step in re.findall(r"resumed at step (\d+)", mlpt.output())]
    assert resumed
    assert reached - resumed[0] <= 40, "more was lost than a checkpoint interval and one that was being written"


def test_elastic_workers_grow_onto_a_node_that_comes_and_shrink_when_it_goes(head, start, mlpt):
    head.add_node(cpus=1)
    run, process = start("runtime.num_workers=[1,2]", "runtime.resize_every=3", "runtime.start_timeout=15")
    reach(run, process, mlpt, lambda: step_of(run) > 50)
    assert worlds_of(run) == [1], mlpt.output()
    second = head.add_node(cpus=1)
    reach(run, process, mlpt, lambda: worlds_of(run)[-1] == 2)
    grown_at = step_of(run)
    reach(run, process, mlpt, lambda: step_of(run) > grown_at + 100)
    second.kill()
    reach(run, process, mlpt, lambda: worlds_of(run)[-1] == 1)
    check_all_steps(run, process, mlpt)


def test_a_notice_of_preemption_is_answered_with_a_checkpoint_in_time(head, start, mlpt):
    node = head.add_node(cpus=1)
    run, process = start("train.checkpoint_every=1000000", "runtime.preemption_every=5")
    reach(run, process, mlpt, lambda: step_of(run) > 100)
    assert not list(run.glob("checkpoints/step_*"))
    subprocess.run(
        [
            *(RAY, "drain-node", f"--address={head.address}", f"--node-id={node.node_id}"),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"),
            *("--deadline-remaining-seconds", "180"),
        ],
        env=head.environment,
        check=True,
        capture_output=True,
    )
    (committed,) = wait_until(lambda: list(run.glob("checkpoints/step_*/COMMITTED")), timeout=170)
    node.kill()
    head.add_node(cpus=1)
    saved = int(committed.parent.name.removeprefix("step_"))
    reach(run, process, mlpt, lambda: f"resumed at step {saved}" in mlpt.output())
    check_all_steps(run, process, mlpt)
