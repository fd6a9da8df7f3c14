"""`mlpt tune` end to end: real Ray Tune, real text, tiny models."""

import os
import signal

import pyarrow.parquet as pq
import pytest
import yaml
from real_runs import kill_the_process_that_writes, metrics_of
from waiting import wait_until

from mlpt.reporting.report import report_page

SPACE = '''"""{question}?"""
from ray import tune
from mlpt.tuning.space import Space
space = Space(parameters={{{parameters}}}, metrics={metrics}, {more})
'''
LEARNING_RATE = '"train.optimizer.lr": tune.loguniform(1e-4, 1e-2)'


@pytest.fixture
def space(tmp_path):
    """Write a space file and return its path."""

    def write(parameters=LEARNING_RATE, metrics='{"dev/mlm": "min"}', more="tokens=8_000, trials=3, evaluations=3"):
        path = tmp_path / "mine.py"
        path.write_text(SPACE.format(question="Why", parameters=parameters, metrics=metrics, more=more))
        return path

    return write


def test_a_sweep_too_large_for_the_machine_ends_in_one_line(mlpt, tiny, space):
    code, output = mlpt.run("tune", space(), *tiny, "runtime.cpus_per_worker=64")
    assert code == 2
    assert "a trial needs 64 CPU and Ray has" in output


@pytest.mark.slow
def test_a_sweep_leaves_a_table_of_trials_and_a_recipe_that_pretrain_takes(mlpt, tiny, space, tmp_path):
    folder = tmp_path / "sweep"
    code, output = mlpt.run("tune", space(), *tiny, f"sweep.folder={folder}", "sweep.seeds=2", "sweep.finalists=1")
    assert code == 0, output
    assert "Traceback" not in output
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert len(rows) == 4  # three points, the best of them with a second seed
    assert {row["status"] for row in rows} <= {"finished", "stopped early"}
    finished = [row for row in rows if row["status"] == "finished" and row["seed"] == 0]
    winner = min(finished, key=lambda row: row["dev/mlm"])
    recipe = yaml.safe_load((folder / "best.yaml").read_text())
    assert recipe["train"]["optimizer"]["lr"] == winner["parameter/train.optimizer.lr"]
    assert recipe["train"]["tokens"] == 8_000
    assert "min dev/mlm" in report_page([str(folder)])
    code, output = mlpt.run(
        "pretrain", folder / "best.yaml", "train.tokens=null", "train.steps=2", "runtime.num_workers=0"
    )
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("search", ["random", "tpe"])
def test_of_several_texts_equal_parts_and_a_learned_mix_come_first(mlpt, tiny, tiny_text, tmp_path, search):
    half = tiny_text.stat().st_size // 2
    (tmp_path / "a.txt").write_bytes(tiny_text.read_bytes()[:half])
    (tmp_path / "b.txt").write_bytes(tiny_text.read_bytes()[half:])
    texts = ["data.source=null", "data.sources={a: a.txt, b: b.txt}", "meta.target={texts: a.txt}"]
    look = "meta.lookahead={start: 2, batch_size: 4, dev_batch_size: 4}"
    small = ["train.batch_size=4", "train.micro_batch_size=2", look]
    words = ["sweep.folder=sweep", "sweep.trials=3", "sweep.seeds=1", "sweep.tokens=4_000", "sweep.evaluations=2"]
    words += [f"sweep.search={search}", "sweep.scheduler=none", "meta.interval=4", "meta.lag=4", "objectives=[mlm]"]
    code, output = mlpt.run("tune", "sampling", *tiny, *texts, *small, *words)
    assert code == 0, output
    rows = pq.read_table(tmp_path / "sweep" / "trials.parquet").to_pylist()
    points = [(row["parameter/rule"], row["parameter/mlm@a"], row["parameter/mlm@b"]) for row in rows]
    assert {("fixed", 1.0, 1.0), ("dga", 1.0, 1.0)} < set(points)
    assert len(set(points)) == 3
    assert all(row["dev/target"] == row["dev/mlm@texts"] for row in rows)


@pytest.mark.slow
def test_two_metrics_give_a_front_of_recipes(mlpt, tiny, space, tmp_path):
    more = 'tokens=6_000, trials=4, evaluations=2, search="tpe", scheduler="none"'
    mine = space(metrics='{"dev/mlm": "min", "dev/atd": "min"}', more=more)
    code, output = mlpt.run("tune", mine, *tiny, f"sweep.folder={tmp_path / 'sweep'}")
    assert code == 0, output
    rows = pq.read_table(tmp_path / "sweep" / "trials.parquet").to_pylist()
    pairs = [(row["dev/mlm"], row["dev/atd"]) for row in rows]
    on_front = [p for p in pairs if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in pairs)]
    assert len(list((tmp_path / "sweep" / "front").glob("*.yaml"))) == len(on_front)


@pytest.mark.slow
def test_pbt_copies_good_weights_and_perturbs_learning_rate_and_mixture(mlpt, tiny, space, tmp_path):
    parameters = LEARNING_RATE + ', "meta.rules.mixture.weights.mlm": tune.uniform(0.2, 4.0)'
    more = (
        'tokens=16_000, trials=4, evaluations=9, scheduler="pbt",'
        'mutable=("train.optimizer.lr", "meta.rules.mixture.weights.mlm"),'
        ' base={"meta.rules.mixture": {"rule": "fixed", "weights": {"mlm": 1.0, "atd": 1.0, "dtd": 0.5}}}'
    )
    mine = space(parameters, more=more)
    code, output = mlpt.run("tune", mine, *tiny, f"sweep.folder={tmp_path / 'sweep'}", timeout=280)
    assert code == 0, output
    rows = pq.read_table(tmp_path / "sweep" / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * 4, output
    for row in rows:  # the mixture in force at the end is the trial's own, not that of the weights it took over
        last = [line for line in metrics_of(row["run_dir"]) if "mixture" in line][-1]
        weight = row["parameter/meta.rules.mixture.weights.mlm"]
        assert last["mixture"]["mlm"] == pytest.approx(weight / (weight + 1.5))
    exploited = list((tmp_path / "sweep" / "tune" / "search").glob("pbt_policy_*.txt"))
    assert exploited, "no trial took over another's weights"


def cut_short(search):
    """What a disk that is full leaves of the files that Tune writes over, or appends to."""
    for path in [*search.glob("experiment_state*"), *search.glob("*/result.json")]:
        os.truncate(path, max(0, path.stat().st_size - 20))
    for path in search.glob("basic-variant-state*"):
        os.truncate(path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("disk_was_full", [False, True])
def test_a_killed_sweep_goes_on_with_the_trials_that_were_left(mlpt, tiny, tiny_text, space, tmp_path, disk_was_full):
    folder = tmp_path / "sweep"
    mine = space(more='tokens=8_000, trials=4, evaluations=3, scheduler="none"')
    text = f"data.source={os.path.relpath(tiny_text, tmp_path)}"
    process = mlpt.start("tune", mine, *tiny, text, f"sweep.folder={folder}", "sweep.concurrent=1")
    wait_until(lambda: "trial 2:" in mlpt.output() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    written = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/finished.json")}
    if disk_was_full:
        cut_short(folder / "tune" / "search")
    mlpt.folder = tmp_path / "some" / "where" / "else"
    mlpt.folder.mkdir(parents=True)
    code, output = mlpt.run("tune", "--resume", folder)
    assert code == 0, output
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * 4
    assert {path.parent.name for path in written} <= {row["trial_id"] for row in rows}
    assert all(path.stat().st_mtime_ns == time for path, time in written.items()), "a finished trial ran again"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_with_one_line_and_its_exit_code(mlpt, tiny, space, tmp_path, number):
    folder = tmp_path / "sweep"
    process = mlpt.start("tune", space(), *tiny, f"sweep.folder={folder}", "sweep.concurrent=1")
    wait_until(lambda: "trial 1:" in mlpt.output() or process.poll() is not None)
    process.send_signal(number)
    assert process.wait(timeout=120) == 128 + number, mlpt.output()
    said = mlpt.output().partition("trial 1:")[2].splitlines()[1:]
    assert [line for line in said if not line.startswith("trial ")] == [
        "mlpt: stopped; the same command goes on where it was, a sweep by `mlpt tune --resume FOLDER`"
    ]
    assert not (folder / "trials.parquet").exists()


@pytest.mark.slow
def test_a_trial_that_crashes_is_retried_and_one_that_cannot_work_is_reported(mlpt, tiny, space, tmp_path):
    folder = tmp_path / "sweep"
    mine = space(
        '"train.optimizer.lr": tune.grid_search([1e-3, 1e12])',
        more="""tokens=8_000, trials=1, evaluations=3,
        search="grid", scheduler="none" """,
    )
    process = mlpt.start("tune", mine, *tiny, f"sweep.folder={folder}", "sweep.concurrent=1", "train.clip=0")
    log = wait_until(lambda: next(iter(folder.glob("trials/*/metrics.jsonl")), None) or process.poll() is not None)
    kill_the_process_that_writes(log)
    process.wait(timeout=240)
    output = mlpt.output()
    assert process.returncode == 0, output
    by_rate = {row["parameter/train.optimizer.lr"]: row for row in pq.read_table(folder / "trials.parquet").to_pylist()}
    assert by_rate[1e-3]["status"] == "finished", output
    assert by_rate[1e12]["status"] == "failed"
    assert "not finite" in by_rate[1e12]["error"]


@pytest.mark.slow
def test_a_sweep_whose_every_trial_failed_exits_with_an_error_and_keeps_its_table(mlpt, tiny, space, tmp_path):
    more = 'tokens=4_000, trials=1, evaluations=2, search="grid", scheduler="none"'
    mine = space('"train.optimizer.lr": tune.grid_search([1e12, 1e13])', more=more)
    code, output = mlpt.run("tune", mine, *tiny, f"sweep.folder={tmp_path / 'sweep'}", "train.clip=0")
    assert code == 2, output
    assert "every trial failed (2 of 2), the first with: " in output
    rows = pq.read_table(tmp_path / "sweep" / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["failed"] * 2


@pytest.mark.slow
def test_latency_and_loss_make_a_front_of_smaller_models(mlpt, tiny, space, tmp_path):
    parameters = '"masks.sparsity": tune.grid_search([0.0, 0.5])'
    base = """{"masks.structured": "neurons", "masks.train": ["weights", "heads"], "model.architecture": "bert",
        "meta.rules.mixture": {"rule": "uniform"}}"""
    more = f'tokens=4_000, trials=1, evaluations=2, search="grid", scheduler="none", base={base}'
    mine = space(parameters, '{"latency": "min", "dev/mlm": "min"}', more)
    code, output = mlpt.run("tune", mine, *tiny, f"sweep.folder={tmp_path / 'sweep'}")
    assert code == 0, output
    rows = pq.read_table(tmp_path / "sweep" / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * 2, output
    assert all(0 < row["latency"] < 1000 for row in rows)
    assert list((tmp_path / "sweep" / "front").glob("*.yaml"))
