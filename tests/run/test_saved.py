"""What stands for a model: finished runs, and unfinished ones by their checkpoints; and what is said without either."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.config import load_run_config
from mlpt.errors import UserError
from mlpt.run.launch import pretrain
from mlpt.run.saved import resolve_model, with_model_of_run
from mlpt.sparsity.artefacts import load_masks
from mlpt.storage.checkpoint import read_checkpoint
from mlpt.training.loop import Loop

SETTINGS = {
    "model": {"architecture": "bert", "hidden_size": 32, "layers": 2, "heads": 2},
    "objectives": ["mlm"],
    "meta": {"rules": {"mixture": {"rule": "uniform"}}, "interval": 1, "lag": 0},
    "train": {"steps": 9, "batch_size": 4, "evaluate_batches": 1, "evaluate_every": 2, "checkpoint_every": 2},
    "runtime": {"num_workers": 0},
    "report": {"progress": "off", "tensorboard": False},
}


def stopped_run(folder: Path, blocks: str, **more: object) -> Path:
    """A run that was interrupted in its sixth step, with checkpoints of steps 2 and 4."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(SETTINGS | {"data": {"source": blocks}, "name": "stopped"} | more))  # JSON is YAML
    step = Loop.train_step

    def interrupted(loop: Loop) -> None:
        if loop.step == 5:
            raise KeyboardInterrupt
        step(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(str(path), {"run_dir": str(folder / "run")})
    return folder / "run"


@pytest.fixture(scope="module")
def run(small_blocks, tmp_path_factory) -> Path:
    return stopped_run(tmp_path_factory.mktemp("runs"), small_blocks)


def quiet(text: str) -> None:
    pass


def mlpt(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_an_unfinished_run_stands_for_its_last_checkpoint_and_says_so(run):
    said: list[str] = []
    folder = resolve_model(str(run), said.append)
    assert said == [f"{run} is not finished: taking its checkpoint of step 4"]
    model = AutoModelForMaskedLM.from_pretrained(folder)
    saved = read_checkpoint(run / "checkpoints" / "step_00000004", 4).tensors["model"]
    for name, weight in model.named_parameters():
        assert torch.equal(weight, saved[f"backbone.{name}"]), name
    assert len(AutoTokenizer.from_pretrained(folder)) <= model.config.vocab_size


def test_a_checkpoint_is_named_by_its_step_or_as_the_best(run):
    best = json.loads((run / "checkpoints" / "best.json").read_text())["step"]
    for name, step in (("step=2", 2), ("last", 4), ("best", best)):
        assert resolve_model(f"{run}@{name}", quiet).endswith(f"models/step_{step:08d}")


def test_a_made_folder_is_used_again_until_its_checkpoint_is_another(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    weights = Path(resolve_model(str(copy), quiet)) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    resolve_model(str(copy), quiet)
    assert weights.stat().st_mtime_ns == before
    made_from = weights.parent / "checkpoint.json"
    made_from.write_text(json.dumps({"step": 4, "mark": "that of a run before"}))
    weights.write_bytes(b"")
    resolve_model(str(copy), quiet)
    assert weights.stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{run}@step=3", "has no checkpoint of step 3: it has those of steps 2, 4"),
        ("{empty}", "not finished and has no checkpoint; begin it again by `mlpt pretrain --resume {empty} --restart`"),
        ("{empty}@best", "no checkpoint that is known to be the best: it has none"),
        ("nowhere@best", "nowhere is no run"),
        ("s3://bucket/run", "is a URI"),
    ],
)
def test_what_a_run_lacks_is_said(run, tmp_path, name, says):
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(run / "config.yaml", empty)
    with pytest.raises(UserError) as error:
        resolve_model(name.format(run=run, empty=empty), quiet)
    assert says.format(empty=empty) in str(error.value)
    assert "\n" not in str(error.value)


def test_names_that_are_no_run_stay_as_they_are(tmp_path):
    assert resolve_model("google-bert/bert-base-cased") == "google-bert/bert-base-cased"
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_a_tokenizer_of_the_same_name_is_the_models(run):
    named = f"{run}@step=2"
    config = load_run_config(None, {"model": {"pretrained": named}, "data": {"tokenizer": named}})
    resolved = with_model_of_run(config, quiet)
    assert resolved.model.pretrained == resolved.data.tokenizer == str(run / "models" / "step_00000002")
    assert with_model_of_run(load_run_config(None, {}), quiet) == load_run_config(None, {})


def test_every_command_takes_an_unfinished_run(run, tmp_path):
    assert "checkpoint of step 4" in mlpt("export", run, "--out", tmp_path / "out")
    ours = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    saved = read_checkpoint(run / "checkpoints" / "step_00000004", 4).tensors["model"]
    assert torch.equal(
        ours.bert.embeddings.word_embeddings.weight, saved["backbone.bert.embeddings.word_embeddings.weight"]
    )
    assert "mlm loss" in mlpt("evaluate", f"{run}@step=2", "--batches", 1)
    assert "14 matrices" in mlpt("prune", run, "--sparsity", 0.5, "--out", tmp_path / "masks")
    small = ["seeds=1", "max_steps=2", "subset=32", "max_length=32", "predict_test=false"]
    assert "docs_package" in mlpt("finetune", run, "--tasks", "docs_package", "--out", tmp_path / "tuned", *small)
    more = {"model": {"pretrained": f"{run}@step=2"}, "run_dir": str(tmp_path / "more"), "train": {"steps": 1}}
    blocks = json.loads((run / "blocks.json").read_text())["blocks"]
    recipe = tmp_path / "more.yaml"
    recipe.write_text(json.dumps(SETTINGS | {"model": {}, "data": {"source": blocks}, "name": "more"}))
    went_on = pretrain(str(recipe), more)
    assert "models/step_00000002" in (went_on.folder / "config.yaml").read_text()


def test_the_checkpoint_of_a_mask_training_is_exported_with_its_masks(small_blocks, tmp_path):
    masks = {"sparsity": 0.6, "reset": {"interval": 1}}
    run = stopped_run(tmp_path, small_blocks, masks=masks, train=SETTINGS["train"] | {"optimizer": {"lr": 0.05}})
    file = load_masks(resolve_model(str(run), quiet))
    mlpt("export", run, "--out", tmp_path / "out")
    mlpt("export", run, "--dense", "--out", tmp_path / "dense")
    name = "bert.encoder.layer.0.output.dense.weight"
    sparse, dense = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / one).get_parameter(name) for one in ("out", "dense")
    )
    assert float(file.masks[name].float().mean()) == pytest.approx(0.4, abs=1e-3)
    assert torch.equal(sparse, dense * file.masks[name])
    assert dense.count_nonzero() == dense.numel()
