"""Sweeps whose trials are runs on several Ray Train workers: they end, free what they held, and refuse what would hang.

Each has a Ray of its own, seen from outside.
"""

import pyarrow.parquet as pq
import pytest
from ray_heads import Head
from waiting import wait_until

SPACE = '''"""Why?"""
from ray import tune
from mlpt.tuning.space import Space
space = Space(
    parameters={"train.optimizer.lr": tune.grid_search([3e-3, 1e-7, 1e-6])},
    metrics={"dev/mlm": "min"}, tokens=12_000, trials=1, evaluations=3, search="grid", scheduler="asha",
)
'''
TWO_WORKERS = ["runtime.num_workers=2", "runtime.meta_cpus=0", "meta.rules.mixture={rule: uniform}"]


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SPACE)
    return path


@pytest.fixture
def head(tmp_path):
    """Start heads; they end with the test."""
    started = []

    def start(name="head", **options):
        folder = tmp_path / name
        folder.mkdir()
        started.append(Head(folder, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_of_two_workers_are_stopped_early_and_leak_no_cpu(head, tiny, space, tmp_path):
    cluster = head(cpus=2)  # room for one trial: a leaked worker would keep the next trial waiting for ever
    folder = tmp_path / "sweep"
    words = (*tiny, *TWO_WORKERS, f"runtime.address={cluster.address}", f"sweep.folder={folder}")
    done = cluster.run("tune", space, *words, timeout=800)
    assert done.returncode == 0, done.stderr
    assert "3 trials, 1 at a time (2 CPU each)" in done.stdout
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    by_rate = {row["parameter/train.optimizer.lr"]: row["status"] for row in rows}
    assert by_rate == {3e-3: "finished", 1e-7: "stopped early", 1e-6: "stopped early"}, done.stderr
    wait_until(lambda: both_cpus_are_free(cluster), timeout=60, every=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_sweep_of_two_worker_trials_goes_on_and_leaks_no_cpu(head, tiny, space, tmp_path):
    cluster = head(cpus=2)
    folder = tmp_path / "sweep"
    words = (*tiny, *TWO_WORKERS, f"runtime.address={cluster.address}", f"sweep.folder={folder}")
    driver, output = cluster.start("tune", space, *words, "sweep.scheduler=none")
    try:
        wait_until(lambda: "trial 2:" in output.read_text() or driver.poll() is not None, timeout=300)
        assert driver.poll() is None, output.read_text()
    finally:
        driver.kill()
        driver.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/finished.json")}
    done = cluster.run("tune", "--resume", folder, timeout=500)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * 3, done.stderr
    assert finished
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items()), "a finished trial ran again"
    wait_until(lambda: both_cpus_are_free(cluster), timeout=60, every=2)


def both_cpus_are_free(cluster):
    free, everything = cluster.resources()
    return free.get("CPU") == everything["CPU"] == 2


@pytest.mark.slow
def test_a_cluster_without_a_dashboard_is_refused_in_one_line(head, tiny, space, tmp_path):
    cluster = head(cpus=2, dashboard=False)
    words = (*tiny, *TWO_WORKERS, f"runtime.address={cluster.address}", f"sweep.folder={tmp_path / 'sweep'}")
    done = cluster.run("tune", space, *words, timeout=200)
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr, "need Ray's dashboard, and it does not answer")


@pytest.mark.slow
def test_two_rays_on_one_machine_are_not_guessed_between(head, tiny, space, tmp_path):
    first, _ = head("one", cpus=2), head("two", cpus=2)
    words = (*tiny, *TWO_WORKERS, "runtime.address=auto", f"sweep.folder={tmp_path / 'sweep'}")
    done = first.run("tune", space, *words, timeout=200)
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr, "give runtime.address=HOST:PORT")


def assert_one_line(stderr, says):
    lines = [line for line in stderr.splitlines() if line.startswith("mlpt: ")]
    assert len(lines) == 1, stderr
    assert says in lines[0]
    assert "Traceback" not in stderr
