"""Going on with runs: finished, longer, damaged, stopped; in this process, on real text."""

import json
import shlex
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from mlpt.config import load_run_config
from mlpt.errors import UserError
from mlpt.meta.learner import MetaLearner
from mlpt.reporting.history import REPORT
from mlpt.run.folder import RunDir
from mlpt.run.launch import pretrain
from mlpt.run.writing_up import written_up
from mlpt.storage.checkpoint import Checkpoints
from mlpt.training.schedule import ScheduleConfig, learning_rate
from mlpt.training.tracker import read_metrics

SETTINGS = {
    "model": {"architecture": "bert", "hidden_size": 32, "layers": 1, "heads": 2},
    "objectives": {"dtd": None},
    "meta": {"interval": 3, "lag": 2, "rules": {"mixture": {"rule": "exp3"}}},
    "train": {"steps": 6, "batch_size": 4, "evaluate_batches": 1, "checkpoint_every": 3, "log_every": 1},
    "runtime": {"num_workers": 0},
    "report": {"progress": "off", "tensorboard": False},
}


def train(blocks, place, **train_settings):
    settings = {**SETTINGS, "data": {"source": blocks}, "run_dir": str(place)}
    settings["train"] = SETTINGS["train"] | train_settings
    said = StringIO()
    run = pretrain("quickstart", settings, console=Console(file=said, width=200))
    return run, said.getvalue()


def resume(place, settings=None, **keywords):
    said = StringIO()
    run = pretrain(resume=place, settings=settings, console=Console(file=said, width=200), **keywords)
    return run, said.getvalue()


def weights(run):
    return load_file(run.folder / "model/model.safetensors")


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def steps_logged(folder):
    return [line["step"] for line in read_metrics(folder) if "loss" in line]


def test_a_finished_run_is_shown_again_without_training_or_ray(small_blocks, tmp_path, monkeypatch):
    run, first = train(small_blocks, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("mlpt.run.launch._on_ray", None)
    again, said = resume(run.folder, {"runtime": {"num_workers": 2}})
    assert again == run
    assert "the run is finished" in said
    assert first[first.index("trained ") :] in said
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_a_run_on_text_that_was_named_from_its_folder_goes_on_from_any_other(tmp_path, tiny_model, monkeypatch):
    (tmp_path / "corpus").mkdir()
    lines = [f"The {word} is read {n} times by all of them .\n\n" for n in range(900) for word in ("file", "line")]
    (tmp_path / "corpus" / "one.txt").write_text("".join(lines))
    shutil.copytree(tiny_model, tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    settings = {name: value for name, value in SETTINGS.items() if name != "model"}
    for named in ({"data": {"source": "corpus/"}}, {"data": {"sources": {"one": "corpus/*.txt"}}}):
        own = {**settings, "model": {"pretrained": "bert"}, "blocks": "blocks", "run_dir": "run"}
        target = {"meta": {**SETTINGS["meta"], "target": {"texts": "corpus/one.txt"}}}
        run = pretrain("quickstart", {**own, **named, **target}, console=Console(file=StringIO()), overwrite=True)
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir("elsewhere")
        longer, _ = resume(run.folder, {"train": {"steps": 7}})
        assert longer.summary["steps"] == 7
        assert not list(Path().iterdir())
        monkeypatch.chdir(tmp_path)
        shutil.rmtree("blocks")


def test_a_run_whose_model_is_gone_is_not_finished(small_blocks, tmp_path):
    run, _ = train(small_blocks, tmp_path / "run")
    before = weights(run)
    (run.folder / "model/config.json").unlink()
    again, _ = resume(run.folder)
    assert equal(weights(again), before)
    (training, _) = Checkpoints(run.folder / "checkpoints").load(6).state["seconds"]
    assert again.summary["seconds"] >= training > 0
    assert again.summary["tokens_per_second"] == pytest.approx(6 * 4 * 32 / again.summary["seconds"])


def test_a_run_goes_on_in_another_precision(small_blocks, tmp_path):
    run, _ = train(small_blocks, tmp_path / "run")
    for steps, precision in ((9, "fp16"), (12, "fp16"), (15, "bf16")):  # fp16 scales its losses, the others none
        resume(run.folder, {"train": {"precision": precision, "steps": steps}})
        scaler = Checkpoints(run.folder / "checkpoints").load(steps).state["scaler"]
        assert scaler.get("_growth_tracker") == {9: 3, 12: 6, 15: None}[steps]


@pytest.mark.parametrize("longer", [{"steps": 12}, {"tokens": 12 * 4 * 32}], ids=["steps", "tokens"])
def test_a_finished_run_is_made_longer_and_ends_as_one_that_was_that_long_from_the_start(
    small_blocks, tmp_path, longer
):
    constant = {"schedule": {"shape": "constant", "warmup": 0}}
    short, _ = train(small_blocks, tmp_path / "short", **constant)
    straight, _ = train(small_blocks, tmp_path / "straight", **constant, steps=12)
    extended, said = resume(short.folder, {"train": longer})
    assert (extended.summary["steps"], extended.summary["resumed_at"]) == (12, 6)
    assert equal(weights(extended), weights(straight))
    assert steps_logged(short.folder) == list(range(1, 13))
    ((name, value),) = longer.items()
    assert f"train.{name}={value} from step 6 on" in said
    assert "learning rate" not in said  # a constant one does not change
    text = (short.folder / "config.yaml").read_text()
    assert text.startswith(f"# from step 6 on: train.{name}={value} (before: ")
    assert getattr(load_run_config(str(short.folder / "config.yaml"), {}).train, name) == value
    assert "the run is finished" in resume(short.folder)[1]


def test_making_a_run_longer_says_what_the_schedule_does(small_blocks, tmp_path):
    run, _ = train(small_blocks, tmp_path / "run", optimizer={"lr": 1e-3})
    _, said = resume(run.folder, {"train": {"steps": 12}})
    now = learning_rate(ScheduleConfig(), 6, 12, 1e-3)
    assert f"schedule (linear) of a run of 12 steps: at step 6 it is {now:.3g}, and would have been 0" in said
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(run.folder) if "learning_rate" in line}
    assert rates[7] == pytest.approx(learning_rate(ScheduleConfig(), 7, 12, 1e-3))


def test_a_schedule_of_a_length_of_its_own_is_kept_and_said(small_blocks, tmp_path):
    run, _ = train(small_blocks, tmp_path / "run", schedule={"length": 6})
    _, said = resume(run.folder, {"train": {"steps": 8}})
    assert "train.schedule.length=6: from step 6 on it is 0;" in said
    resume(run.folder, {"train": {"steps": 10, "schedule": {"length": 10}}})
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(run.folder) if "learning_rate" in line}
    assert rates[8] == 0
    assert rates[9] == pytest.approx(learning_rate(ScheduleConfig(), 9, 10, extended_rate(run)))


def extended_rate(run):
    return load_run_config(str(run.folder / "config.yaml"), {}).train.optimizer.lr


def test_a_budget_in_tokens_gives_way_to_steps_that_are_asked_for(small_blocks, tmp_path):
    run, _ = train(small_blocks, tmp_path / "run", tokens=6 * 4 * 32)
    extended, _ = resume(run.folder, {"train": {"steps": 8}})
    assert extended.summary["steps"] == 8
    assert load_run_config(str(run.folder / "config.yaml"), {}).train.tokens is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train": {"steps": 5}}, "can only make a run longer: it has 6 steps and would have 5"),
        ({"train": {"tokens": 100}}, "can only make a run longer"),
        ({"train": {"steps": 9, "tokens": 9000}}, "give one of them"),
        ({"model": {"layers": 2}}, "model.layers cannot change in the middle of a run"),
        ({"train": {"batch_size": 8}}, "train.batch_size cannot change"),
        ({"train": {"stepz": 8}}, "did you mean 'train.steps'?"),
    ],
)
def test_what_cannot_change_in_the_middle_of_a_run_is_refused(small_blocks, tmp_path, settings, says):
    run, _ = train(small_blocks, tmp_path / "run", steps=6, checkpoint_every=6)
    config = (run.folder / "config.yaml").read_text()
    with pytest.raises(UserError) as error:
        resume(run.folder, settings)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert (run.folder / "config.yaml").read_text() == config


def unfinished(blocks, place):
    """A run that died after its last checkpoint and before its end."""
    run, _ = train(blocks, place)
    end = weights(run)
    (run.folder / "summary.json").unlink()
    return run.folder, end


def test_a_run_whose_checkpoints_were_removed_stops_and_overwrites_nothing(small_blocks, tmp_path):
    folder, _ = unfinished(small_blocks, tmp_path / "a run")
    for path in sorted(folder.glob("checkpoints/*/*")):
        path.unlink()
    with pytest.raises(UserError, match=r"begin a new run from the model: `mlpt pretrain 'model\.pretrained="):
        resume(folder)
    (folder / "model/config.json").unlink()
    metrics = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError) as error:
        resume(folder)
    assert str(error.value).endswith(f"begin it again by `mlpt pretrain --resume '{folder}' --restart`")
    assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_the_only_checkpoint_is_not_passed_over_for_one_that_does_not_exist(small_blocks, tmp_path):
    folder, end = unfinished(small_blocks, tmp_path / "run")
    for step in (3, 6):
        (folder / f"checkpoints/step_{step:08d}/model.safetensors").write_bytes(b"torn")
    metrics = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"step_00000003 is damaged: .*there is none to fall back to: begin again"):
        resume(folder)
    with pytest.raises(UserError, match="there is none to fall back to"):  # as the workers of a restarted group do
        Checkpoints(folder / "checkpoints").latest(say=print)
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    again, _ = resume(folder, restart=True)
    assert again.summary["resumed_at"] == 0
    assert equal(weights(again), end)


def test_a_damaged_checkpoint_is_passed_over_for_one_that_does(small_blocks, tmp_path):
    folder, end = unfinished(small_blocks, tmp_path / "run")
    (folder / "checkpoints/step_00000006/model.safetensors").write_bytes(b"torn")
    run, _ = resume(folder)
    assert run.summary["resumed_at"] == 3
    assert equal(weights(run), end)


@pytest.mark.parametrize("at_uri", [False, True], ids=["folder", "URI"])
def test_restart_begins_a_run_again_with_its_own_configuration(small_blocks, tmp_path, monkeypatch, at_uri):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = f"file://{tmp_path}/bucket/run" if at_uri else str(tmp_path / "run")
    run, _ = train(small_blocks, place, evaluate_every=3)
    before = weights(run)
    again, _ = resume(place, restart=True)
    assert again.summary["resumed_at"] == 0
    assert equal(weights(again), before)
    kept = Path(place.removeprefix("file://"))
    assert {path.name for path in kept.glob("checkpoints/step_*")} == {"step_00000003", "step_00000006"}
    lines = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_restart_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="--resume RUN --restart"):
        pretrain(restart=True)


def test_commands_can_be_copied_from_the_summary_of_a_run_with_spaces_in_its_path(small_blocks, tmp_path):
    run, said = train(small_blocks, tmp_path / "my run's folder")
    (line,) = [line for line in said.splitlines() if line.startswith("resume: ")]
    assert shlex.split(line.removeprefix("resume: ")) == ["mlpt", "pretrain", "--resume", str(run.folder)]
    with pytest.raises(UserError) as error:
        train(small_blocks, run.folder)
    command = str(error.value).split("`")[1]
    assert shlex.split(command)[-1] == str(run.folder)
    (run.folder / REPORT).unlink()
    (run.folder / REPORT).mkdir()  # no report can be written
    said = StringIO()
    with written_up(RunDir(run.folder), 6, True, Console(file=said, width=1000)):
        pass
    assert shlex.split(said.getvalue().split("`")[1]) == ["mlpt", "report", str(run.folder)]


def test_the_learner_in_this_process_computes_with_the_actors_threads(small_blocks, tmp_path, monkeypatch):
    seen = []
    update = MetaLearner.update

    def watched(*arguments):
        seen.append(torch.get_num_threads())
        return update(*arguments)

    monkeypatch.setattr(MetaLearner, "update", watched)
    settings = {**SETTINGS, "data": {"source": small_blocks}, "run_dir": str(tmp_path / "run")}
    settings["runtime"] = {"num_workers": 0, "cpus_per_worker": 2, "meta_cpus": 1}
    pretrain("quickstart", settings, console=Console(quiet=True))
    assert set(seen) == {1}


def test_a_run_in_this_process_computes_with_a_workers_threads_and_gives_the_callers_back(
    small_blocks, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr("mlpt.run.launch.run_rank", lambda *_, **__: seen.append(torch.get_num_threads()) or 1 / 0)
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            train(small_blocks, tmp_path / "run")
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
