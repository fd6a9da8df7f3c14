"""`mlpt pretrain` as a user runs it, with real Ray: alone, with two workers, killed in every way and resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from transformers import AutoModel, AutoModelForMaskedLM

from mlpt.training.tracker import read_metrics

RECIPE = {
    "name": "tiny",
    "model": {"hidden_size": 32, "layers": 1, "heads": 2},
    "objectives": ["mlm", "atd", "dtd", "cse"],
    "meta": {"interval": 10, "lag": 5, "rules": {"mixture": {"rule": "mometas"}}},
    "train": {
        "steps": 300,
        "batch_size": 8,
        "micro_batch_size": 4,
        "log_every": 1,
        "evaluate_batches": 2,
        "checkpoint_every": 20,
    },
    "runtime": {"num_workers": 1, "cpus_per_worker": 1},
    "report": {"tensorboard": False},
}
pytestmark = pytest.mark.timeout(900)
SOME_STEP = 60  # when something is killed
PATIENCE_S = 600


class Command:
    """`mlpt` in a process of its own, its output in a file."""

    def __init__(self, folder: Path, *words: str):
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        self.output = folder / f"output-{time.monotonic_ns()}.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlpt", *words],
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)

    def text(self) -> str:
        return self.output.read_text()


@pytest.fixture
def recipe(small_blocks: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "data": {"source": small_blocks}}))
    return path


@pytest.fixture(scope="module")
def uninterrupted(small_blocks: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed, without Ray: what every other one must repeat."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "data": {"source": small_blocks}}))
    command = Command(folder, "pretrain", str(path), f"run_dir={folder / 'run'}", "runtime.num_workers=0")
    assert command.wait() == 0, command.text()
    return folder / "run"


def losses(run: Path) -> list[tuple]:
    kept = ("step", "loss", "held_out", "held_out_before", "mixture", "policy")
    return [tuple(json.dumps(line.get(key)) for key in kept) for line in read_metrics(run)]


def wait_for(condition: Callable[[], object], command: Command) -> object:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert command.process.poll() is None, command.text()
        time.sleep(0.05)
    raise AssertionError(f"nothing happened in {PATIENCE_S} s: {command.text()}")


def step_reached(run: Path, step: int) -> bool:
    file = run / "metrics.jsonl"
    return file.is_file() and f'"step": {step},' in file.read_text()


def process_of(log: Path) -> int:
    return int(re.findall(r"process (\d+)", log.read_text())[-1])


def test_a_run_on_ray_repeats_the_run_in_one_process(recipe, tmp_path, uninterrupted):
    run = tmp_path / "run"
    command = Command(tmp_path, "pretrain", str(recipe), f"run_dir={run}")
    assert command.wait() == 0, command.text()
    assert losses(run) == losses(uninterrupted)
    assert f"mlpt pretrain --resume {run}" in command.text().replace("\n", "")
    assert {path.name for path in (run / "logs").iterdir()} == {"rank_0.log", "meta_learner.log"}
    assert json.loads((run / "policies/mixture.json").read_text())["version"] == 30
    for stock in (AutoModel, AutoModelForMaskedLM):
        assert stock.from_pretrained(run / "model").config.hidden_size == 32
    assert (run.stat().st_mode & 0o077) == 0


@pytest.mark.slow
def test_a_killed_driver_loses_nothing(recipe, tmp_path, uninterrupted):
    run = tmp_path / "run"
    command = Command(tmp_path, "pretrain", str(recipe), f"run_dir={run}")
    wait_for(lambda: step_reached(run, SOME_STEP), command)
    os.kill(command.process.pid, signal.SIGKILL)
    command.wait()
    worker = process_of(run / "logs/rank_0.log")
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{worker}").exists():  # Ray ends the orphan
        assert time.monotonic() < deadline
        time.sleep(0.1)
    again = Command(tmp_path, "pretrain", "--resume", str(run))
    assert again.wait() == 0, again.text()
    assert "resumed at step" in again.text()
    assert losses(run) == losses(uninterrupted)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(recipe, tmp_path, uninterrupted):
    run = tmp_path / "run"
    command = Command(tmp_path, "pretrain", str(recipe), f"run_dir={run}")
    wait_for(lambda: step_reached(run, SOME_STEP), command)
    os.kill(process_of(run / "logs/rank_0.log"), signal.SIGKILL)
    assert command.wait() == 0, command.text()
    assert "resumed at step" in command.text()
    assert losses(run) == losses(uninterrupted)


@pytest.mark.slow
def test_a_killed_meta_learner_loses_nothing(recipe, tmp_path, uninterrupted):
    run = tmp_path / "run"
    command = Command(tmp_path, "pretrain", str(recipe), f"run_dir={run}")
    wait_for(lambda: step_reached(run, SOME_STEP), command)
    os.kill(process_of(run / "logs/meta_learner.log"), signal.SIGKILL)
    assert command.wait() == 0, command.text()
    assert "resumed at step" not in command.text()  # training went on
    assert (run / "logs/meta_learner.log").read_text().count("meta-learner ready") == 2
    assert losses(run) == losses(uninterrupted)


@pytest.mark.slow
def test_a_meta_learner_killed_after_each_of_many_answers_loses_nothing(recipe, tmp_path):
    run, calm, kills = tmp_path / "run", tmp_path / "calm", 10
    words = ("pretrain", str(recipe), "train.steps=900")  # some may pass before a kill on a busy machine
    undisturbed = Command(tmp_path, *words, f"run_dir={calm}", "runtime.num_workers=0")
    assert undisturbed.wait() == 0, undisturbed.text()
    log = run / "logs/meta_learner.log"
    command = Command(tmp_path, *words, f"run_dir={run}")
    for earlier in range(kills):
        wait_for(lambda earlier=earlier: has_answered(log, learners=earlier + 1), command)
        os.kill(process_of(log), signal.SIGKILL)
    assert command.wait() == 0, command.text()
    assert log.read_text().count("meta-learner ready") == kills + 1
    assert losses(run) == losses(calm)


@pytest.mark.slow
def test_a_killed_hub_loses_nothing_and_is_there_for_the_next_ranks_and_for_a_signal(recipe, tmp_path):
    run = tmp_path / "run"
    command = Command(tmp_path, "pretrain", str(recipe), f"run_dir={run}", "train.steps=1000000")
    wait_for(lambda: step_reached(run, SOME_STEP), command)
    started = psutil.Process(command.process.pid).children(recursive=True)
    (hub,) = [one for one in started if one.name().startswith("ray::Hub")]
    hub.kill()
    first = process_of(run / "logs/rank_0.log")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: process_of(run / "logs/rank_0.log") != first, command)  # it asks the hub as it starts
    wait_for(lambda: "resumed at step" in command.text(), command)  # it is seen again
    command.process.terminate()
    assert command.wait() == 143, command.text()
    logged = [line["step"] for line in read_metrics(run) if "loss" in line]
    assert logged == list(range(1, logged[-1] + 1))
    assert (run / "checkpoints" / f"step_{logged[-1]:08d}" / "COMMITTED").is_file()


def has_answered(log: Path, learners: int) -> bool:
    """Whether the last of so many learners has made an update."""
    started = log.read_text().split("meta-learner ready")[1:] if log.is_file() else []
    return len(started) == learners and ": policy " in started[-1]


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_two_workers_from_the_same_token(recipe, tmp_path, uninterrupted):
    run = tmp_path / "run"
    command = Command(tmp_path, "pretrain", str(recipe), f"run_dir={run}", "runtime.num_workers=0")
    wait_for(lambda: step_reached(run, SOME_STEP), command)
    os.kill(command.process.pid, signal.SIGKILL)
    command.wait()
    again = Command(tmp_path, "pretrain", "--resume", str(run), "runtime.num_workers=2")
    assert again.wait() == 0, again.text()
    one, two = ([line for line in read_metrics(path) if "loss" in line] for path in (uninterrupted, run))
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    for ours, theirs in list(zip(one, two, strict=True))[: 2 * SOME_STEP]:  # later, float additions have drifted apart
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)
    assert {path.name for path in (run / "logs").iterdir()} == {"rank_0.log", "rank_1.log", "meta_learner.log"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrain", "train.stepz=3"], "unknown setting 'train.stepz'; did you mean 'train.steps'?"),
        (["pretrain", "quikstart"], "there is no recipe 'quikstart'"),
        (["pretrain", "objectives=[mlm, nothing]"], "there is no objective 'nothing'"),
        (["pretrain", "meta.interval=10", "meta.lag=20"], "lag (20) cannot exceed interval (10)"),
        (["pretrain", "runtime.num_workers=3"], "set train.micro_batch_size=8 or less"),
        (["pretrain", "data.source=nowhere.txt"], "nowhere.txt"),
        (["pretrain", "--resume", "nowhere"], "holds no run"),
        (["pretrain", "runtime.address=127.0.0.1:9", "data.max_bytes=20000"], "cannot reach Ray at runtime.address="),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, words, says):
    command = Command(tmp_path, *words)
    assert command.wait() == 2
    last = command.text().strip().splitlines()[-1]
    assert says in last
    assert "Traceback" not in command.text()


def test_a_run_directory_of_another_configuration_is_left_alone(recipe, tmp_path, uninterrupted):
    before = (uninterrupted / "config.yaml").read_text()
    command = Command(tmp_path, "pretrain", str(recipe), f"run_dir={uninterrupted}", "train.steps=7")
    assert command.wait() == 2
    assert "holds a run of another configuration" in command.text()
    assert (uninterrupted / "config.yaml").read_text() == before


@pytest.mark.slow
def test_an_error_in_a_worker_is_one_line(recipe, tmp_path):
    command = Command(
        tmp_path, "pretrain", str(recipe), f"run_dir={tmp_path / 'run'}", "train.optimizer.lr=1e18", "train.clip=0"
    )
    assert command.wait() == 2
    assert command.text().strip().splitlines()[-1].startswith("mlpt: the ")
    assert "Traceback" not in command.text()


def test_the_final_model_is_the_one_that_was_trained(uninterrupted):
    model = AutoModelForMaskedLM.from_pretrained(uninterrupted / "model")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
