"""mlpt from Python: every example of docs/PYTHON.md runs, runs read as tables, callbacks are heard and obeyed."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

import mlpt
from mlpt.api.pretraining import pretrain
from mlpt.reporting.display import Display
from mlpt.reporting.records import FolderReader
from mlpt.reporting.tables import metrics_table, mixtures_table
from mlpt.reporting.text import has_bars, plain_console
from mlpt.run.callbacks import Listeners
from mlpt.stopping import StopRequest
from mlpt.storage.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/PYTHON.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
SMALL = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2},
    "train": {"steps": 8, "batch_size": 4, "evaluate_batches": 1, "log_every": 1, "checkpoint_every": 100},
    "meta": {"interval": 3, "lag": 1},
    "objectives": ["mlm", "atd"],
    "runtime": {"num_workers": 0},
    "report": {"html": False, "tensorboard": False},
}


@pytest.fixture(scope="module")
def small(small_blocks):
    return {**SMALL, "data": {"source": small_blocks}}


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """Version 1 of the mixture is adopted at step 1, then every 3 steps; evaluated on dev at step 4."""
    place = tmp_path_factory.mktemp("python") / "run"
    train = SMALL["train"] | {"evaluate_every": 4}
    return pretrain(small, {"run_dir": str(place), "train": train}, quiet=True)


def lines(run: mlpt.Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_each_public_name_is_there_and_described_in_the_page():
    for name in mlpt.__all__:
        assert getattr(mlpt, name).__doc__, name
        assert re.search(rf"\bmlpt\.{name}\b|import {name}\b|`{name}`", PAGE), name
    for name in mlpt.sparsity.__all__:
        assert getattr(mlpt.sparsity, name).__doc__
        assert f"sparsity.{name}(" in PAGE
    with pytest.raises(AttributeError, match="no attribute 'pretran'"):
        mlpt.pretran  # noqa: B018


def test_the_examples_of_the_page_run_one_after_another(tmp_path, monkeypatch, small_blocks, capsys):
    monkeypatch.chdir(tmp_path)
    (mood,) = re.findall(r"```yaml\n(name: mood.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "mood.yaml").write_text(mood)
    for split in ("train", "dev"):
        (tmp_path / f"mood_{split}.csv").write_text("text,mood\nfine,good\nwet,bad\n")
    size = "model={'hidden_size': 32, 'layers': 1, 'heads': 2}, meta={'interval': 3, 'lag': 1}, objectives=['mlm']"
    size += ", report={'html': False}"
    less = f"runtime={{'num_workers': 0}}, data={{'source': {small_blocks!r}}}, {size}"
    names: dict = {}
    for example in EXAMPLES:
        # The runs of the page train 200 steps on 8 MB of text; the same lines, on less of both.
        example = example.replace('runtime={"num_workers": 0}', less).replace(
            '"evaluate_every": 20', '"evaluate_every": 2'
        )
        example = example.replace('"steps": 200', '"steps": 6, "batch_size": 4, "evaluate_batches": 1')
        exec(compile(example, "docs/PYTHON.md", "exec"), names)
    assert names["run"].state == names["again"].state == "finished"
    assert names["page"].is_file()
    assert names["patient"].summary["steps"] == 6
    assert isinstance(names["table"], pa.Table)
    assert [result.seed for result in names["results"]] == [1, 2]
    assert names["half"]["density"] == pytest.approx(0.5, abs=0.01)
    assert (tmp_path / "for_others/config.json").is_file()
    assert (tmp_path / "mask.pt").is_file()
    assert names["data"].task.labels == ("bad", "good")
    assert "unknown setting 'train.stepz'; did you mean 'train.steps'" in capsys.readouterr().out


def test_metrics_are_one_row_a_step_with_what_was_logged_there(run):
    frame, logged = run.metrics, lines(run)
    assert frame.index.name == "step"
    assert list(frame.index) == sorted({line["step"] for line in logged})
    for line in logged:
        for name, loss in line.get("loss", {}).items():
            assert frame.loc[line["step"], f"loss/{name}"] == loss
    assert frame["dev/mlm"].dropna().index.tolist() == [line["step"] for line in logged if "dev" in line]
    assert set(frame.dtypes.astype(str)) == {"float64"}
    table = run.metrics_table
    assert table["step"].type == pa.int64()
    assert table["dev/mlm"].null_count == len(frame) - frame["dev/mlm"].count()


def test_without_figures_there_is_an_empty_table(tmp_path):
    from mlpt.reporting.columns import Metrics

    assert metrics_table(Metrics()).num_rows == 0
    assert mixtures_table(FolderReader(str(tmp_path))).column_names == ["version", "step"]


def test_mixtures_are_those_that_training_adopted(run):
    adopted = {0: 0} | {line["policy"]: line["step"] for line in lines(run) if "policy" in line}
    assert run.mixtures["step"].to_dict() == adopted
    assert np.allclose(run.mixtures[["mlm", "atd"]].sum(axis=1), 1.0)


def test_a_run_shows_itself_in_a_notebook(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before, after = (run.summary[key]["atd"] for key in ("held_out_before", "held_out"))
    page = run._repr_html_()
    assert f"<td>{before:.4f}</td><td>{after:.4f}</td>" in page
    assert "finished, 8 steps" in page
    assert "<iframe" not in page  # there is no report
    (run.folder / "report.html").write_text("a report")
    try:
        assert "<iframe" not in run._repr_html_()
        monkeypatch.chdir(run.folder.parent)
        assert '<iframe src="run/report.html"' in run._repr_html_()
    finally:
        (run.folder / "report.html").unlink()
    assert repr(run) == f"Run({str(run.folder)!r}, finished)"


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(mlpt.UserError, match="holds no run"):
        mlpt.load_run(tmp_path)


def test_the_configuration_of_a_run_makes_another(run, tmp_path):
    again = pretrain(run.config, {"run_dir": str(tmp_path / "again")}, quiet=True)
    assert again.summary["held_out"] == run.summary["held_out"]


class Heard(mlpt.Callback):
    """Notes every event; asks for a checkpoint and for the end where it is told to."""

    def __init__(self, save_at: int = -1, stop_at: int = -1):
        self.events: list[tuple[str, int]] = []
        self.save_at, self.stop_at = save_at, stop_at

    def on_step(self, event, control):
        self.events.append(("step", event["step"]))
        if event["step"] == self.save_at:
            control.checkpoint()
        if event["step"] == self.stop_at:
            control.stop()

    def on_evaluation(self, event, control):
        self.events.append(("evaluation", event["step"]))

    def on_policy(self, event, control):
        self.events.append(("policy", event["step"]))


def test_callbacks_hear_everything_and_their_wishes_are_obeyed(run, small, tmp_path):
    heard = Heard(save_at=2, stop_at=5)
    train = SMALL["train"] | {"evaluate_every": 4}
    place = {"run_dir": str(tmp_path / "run"), "train": train}
    stopped = pretrain(small, place, callbacks=[heard, mlpt.Callback()], quiet=True)
    policies = [("policy", line["step"]) for line in lines(run) if "policy" in line and line["step"] <= 6]
    steps = [("step", step) for step in range(1, 7)]  # the step after the wish is the last
    assert sorted(heard.events) == sorted([*steps, *policies, ("evaluation", 4)])
    assert Checkpoints(stopped.folder / "checkpoints", keep=9).steps()[-1] == 6
    assert 2 in Checkpoints(stopped.folder / "checkpoints", keep=9).steps()
    assert (stopped.state, stopped.summary) == ("stopped", {})
    assert stopped.model().config.hidden_size == 32  # of its last checkpoint
    finished = pretrain(resume=stopped.folder, quiet=True)
    assert finished.summary["held_out"] == run.summary["held_out"]


def test_an_exception_of_a_callback_is_raised_when_all_is_saved(small, tmp_path):
    class Broken(mlpt.Callback):
        def on_step(self, event, control):
            raise ZeroDivisionError("of the callback")

    with pytest.raises(ZeroDivisionError, match="of the callback") as error:
        pretrain(small, {"run_dir": str(tmp_path / "run")}, callbacks=Broken(), quiet=True)
    assert "mlpt pretrain --resume" in error.value.__notes__[0]
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == [2]
    assert mlpt.load_run(tmp_path / "run").state == "stopped"


def test_a_signal_is_no_wish_of_a_callback():
    stop = StopRequest(lambda text: None)
    listeners = Listeners([Heard(stop_at=1)])
    listeners.begin("runs/one", stop, in_process=True)
    assert not listeners.has_stopped
    listeners.tell({"event": "step", "step": 1})
    assert (stop(), stop.signalled, stop.name, listeners.has_stopped) == (True, False, "a callback", True)
    with stop.training():
        stop._handle(2, None)
    assert (stop.name, listeners.has_stopped) == ("SIGINT", False)


def test_on_ray_a_callback_cannot_ask_for_checkpoints():
    listeners = Listeners([Heard(save_at=1)])
    listeners.begin("runs/one", StopRequest(lambda text: None), in_process=False)
    listeners.tell({"event": "step", "step": 1})
    assert isinstance(listeners.error, mlpt.UserError)
    assert "runtime.num_workers=0" in str(listeners.error)
    assert listeners.has_stopped  # and nothing is lost


def test_a_notebook_has_a_bar_if_it_can_be_redrawn(monkeypatch):
    notebook = Console(force_jupyter=True, file=io.StringIO())
    monkeypatch.setattr("mlpt.reporting.text.find_spec", lambda name: object() if name == "ipywidgets" else None)
    assert has_bars(notebook)
    assert Display("auto", notebook).mode == "bar"
    monkeypatch.setattr("mlpt.reporting.text.find_spec", lambda name: None)
    assert Display("auto", notebook).mode == "lines"
    assert not has_bars(plain_console(file=io.StringIO()))
