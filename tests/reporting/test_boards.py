"""The boards that a run's numbers go to: the real packages where they are installed, and boards that fail."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlpt.errors import UserError
from mlpt.reporting import boards as module
from mlpt.reporting.boards import Boards, BoardSettings
from mlpt.run.launch import pretrain
from mlpt.training.tracker import read_metrics

RECIPE = {
    "name": "boards",
    "model": {"hidden_size": 32, "layers": 1, "heads": 2},
    "objectives": {"mlm": {}, "mlm40": {"type": "mlm"}},
    "train": {"steps": 4, "batch_size": 4, "evaluate_batches": 1, "log_every": 1, "checkpoint_every": 2},
    "runtime": {"num_workers": 0},
}


@pytest.fixture
def trained(small_blocks, tmp_path):
    """Trains a tiny run with these settings of `report`, breaks it off after step 2 and resumes it; its folder."""

    def train(**report) -> Path:
        report = {"tensorboard": False, "html": False, "progress": "off"} | report
        folder = tmp_path / "run"
        values = RECIPE | {"data": {"source": small_blocks}, "report": report, "run_dir": str(folder)}
        pretrain(values, {"train": {"steps": 2}})
        assert pretrain(resume=folder, settings={"train": {"steps": 4}}).summary["resumed_at"] == 2
        return folder

    return train


def logged(folder: Path, key: str) -> dict[int, float]:
    """Step -> the value of `a/b` in metrics.jsonl."""
    first, second = key.split("/")
    lines = read_metrics(folder)
    return {line["step"]: line[first][second] for line in lines if second in line.get(first, {})}


def test_tensorboard_has_every_number_once(trained):
    folder = trained(tensorboard=True)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("mixture/mlm40")}
    assert shown == pytest.approx(logged(folder, "mixture/mlm40"))
    assert len(shown) == 4


def test_mlflow_has_one_run_with_the_numbers_and_settings(trained, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow, which mlpt does not depend on")
    place = os.environ.get("MLPT_TEST_MLFLOW", f"sqlite:///{tmp_path}/mlflow.db")  # a server's address, or this
    folder = trained(mlflow=place)
    client = mlflow.MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name("boards")
    known = json.loads((folder / "boards.json").read_text())["mlflow"]
    assert known in [run.info.run_id for run in client.search_runs([experiment.experiment_id])]
    run = client.get_run(known)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_size"] == "4"
    shown = {one.step: one.value for one in client.get_metric_history(known, "mixture/mlm40")}
    assert shown == pytest.approx(logged(folder, "mixture/mlm40"))


def test_weights_and_biases_offline_lies_in_the_run(trained):
    pytest.importorskip("wandb", reason="needs wandb, which mlpt does not depend on")
    folder = trained(wandb="offline")
    known = json.loads((folder / "boards.json").read_text())["wandb"]
    files = sorted((folder / "wandb").glob(f"offline-run-*-{known}/run-{known}.wandb"))
    assert len(files) == 2  # before and after resuming, of one run
    assert all(b"mixture/mlm40" in file.read_bytes() for file in files)


def test_trackio_has_the_numbers(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="needs trackio, which mlpt does not depend on")
    folder = trained(trackio=True)
    (run,) = [one for one in trackio.Api().runs("boards") if one.name.startswith(folder.name)]
    assert run.name == json.loads((folder / "boards.json").read_text())["trackio"]
    from trackio.sqlite_storage import SQLiteStorage

    kept = SQLiteStorage.get_metric_values("boards", run.name, "mixture/mlm40")
    shown = {one["step"]: one["value"] for one in kept}
    assert shown == pytest.approx(logged(folder, "mixture/mlm40"))


@pytest.mark.parametrize(
    ("report", "package"),
    [({"mlflow": "sqlite:///x.db"}, "mlflow"), ({"wandb": "offline"}, "wandb"), ({"trackio": True}, "trackio")],
)
def test_a_missing_package_is_told_before_anything_is_done(report, package, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"report.{package} needs a package: pip install {package}"):
        pretrain(RECIPE, {"report": report, "run_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


class FakeRun:
    """A trackio that records `fails_at` - 1 times, then fails."""

    def __init__(self, fails_at: int):
        self.seen: list[tuple[dict, int]] = []
        self.fails_at = fails_at

    def log(self, numbers: dict, step: int) -> None:
        if len(self.seen) + 1 == self.fails_at:
            raise ConnectionError("nobody\nanswers")
        self.seen.append((numbers, step))

    def finish(self) -> None:
        self.seen.append(({}, -1))


def opened(tmp_path, monkeypatch, run) -> tuple[Boards, list[str]]:
    fake = types.ModuleType("trackio")
    fake.init = lambda *args, **settings: run
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    boards, warned = Boards(BoardSettings(tensorboard=False, trackio=True), "one", {}), []
    boards.open(tmp_path, 0, warned.append)
    return boards, warned


def test_a_board_gets_finite_numbers_by_path(tmp_path, monkeypatch):
    run = FakeRun(0)
    boards, _ = opened(tmp_path, monkeypatch, run)
    boards.add(3, {"loss": {"mlm": 1.5, "atd": float("nan")}, "tokens": 7, "rule": "exp3", "deep": {"a": {"b": 2}}})
    assert run.seen == [({"loss/mlm": 1.5, "tokens": 7.0, "deep/a/b": 2.0}, 3)]


def test_a_board_that_fails_is_one_warning_and_left_alone(tmp_path, monkeypatch):
    run = FakeRun(fails_at=2)
    boards, warned = opened(tmp_path, monkeypatch, run)
    for step in (1, 2, 3):
        boards.add(step, {"tokens": step})
    boards.close(finished=True)
    assert warned == ["report.trackio has failed and is left out from here on: nobody answers"]
    assert [step for _, step in run.seen] == [1]
