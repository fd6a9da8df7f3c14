"""The command line of masks, evaluation and export, from a run's folder; errors are one line."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.errors import UserError
from mlpt.run.launch import pretrain

SETTINGS = {
    "model": {"hidden_size": 32, "layers": 2, "heads": 2},
    "objectives": ["mlm"],
    "meta": {"rules": {"mixture": {"rule": "uniform"}}},
    "train": {"steps": 2, "batch_size": 4, "evaluate_batches": 1},
    "runtime": {"num_workers": 0},
    "report": {"progress": "off", "tensorboard": False},
}


@pytest.fixture(scope="module")
def run(small_blocks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = SETTINGS | {"data": {"source": small_blocks}, "run_dir": str(folder), "name": "cli"}
    path = folder.parent / "recipe.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return pretrain(str(path)).folder


def mlpt(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_masks_are_made_compared_shown_measured_and_exported(run, tmp_path):
    assert "over 14 matrices" in mlpt("prune", run, "--sparsity", 0.7, "--out", tmp_path / "a")
    mlpt("prune", run, "--sparsity", 0.7, "--method", "random", "--out", tmp_path / "b")
    mlpt("masks", "compare", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "similar.json")
    means = json.loads((tmp_path / "similar.json").read_text())["means"]
    assert means[0][0] == 1
    assert means[0][1] == pytest.approx(0.3 / 1.7, abs=0.03)  # d / (2 - d) for independent masks of density d
    assert "method magnitude" in mlpt("masks", "show", tmp_path / "a")
    mlpt("evaluate", run, "--masks", tmp_path / "a", "--batches", 1, "--json", tmp_path / "masked.json")
    masked = json.loads((tmp_path / "masked.json").read_text())
    assert masked["density"] == pytest.approx(0.3, abs=1e-3)
    assert masked["kd_cosine"] > 0
    mlpt(
        "evaluate",
        run,
        "--all",
        "--batch-size",
        16,
        "--split",
        "dev",
        "--token-types",
        "pair",
        "--masks",
        tmp_path / "a",
    )
    assert "14 matrices" in mlpt("masks", "convert", tmp_path / "a", tmp_path / "mask.pt", "--suffix", "weight_mask")
    mlpt("masks", "distance", tmp_path / "a", tmp_path / "mask.pt", "--by-position")
    mlpt("export", run, "--masks", tmp_path / "a", "--out", tmp_path / "zeros")
    weight = AutoModelForMaskedLM.from_pretrained(tmp_path / "zeros").bert.encoder.layer[0].output.dense.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.7, abs=1e-3)


def test_a_finished_run_is_resumed_to_the_same_end_under_another_runtime(run):
    before = json.loads((run / "summary.json").read_text())
    mlpt("pretrain", "--resume", run, "runtime.cpus_per_worker=2", "report.progress=off")
    assert json.loads((run / "summary.json").read_text())["held_out"] == before["held_out"]


def test_a_run_is_evaluated_on_its_own_text_without_naming_it(run):
    assert "mlm loss" in mlpt("evaluate", run, "--batches", 1)


def test_an_exported_run_is_the_trained_model(run, tmp_path):
    mlpt("export", run, "--out", tmp_path / "out")
    ours, theirs = (AutoModelForMaskedLM.from_pretrained(folder) for folder in (run / "model", tmp_path / "out"))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_model_is_not_trained_on_blocks_of_another_tokenizer_of_the_same_size(run, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text(
        "\n\n".join(f"Chapter {n}: quixotic zephyrs vex jumbled {n * 7} lynxes {n * n}" for n in range(3000))
    )
    size = AutoModelForMaskedLM.from_pretrained(run / "model").config.vocab_size
    data = [
        f"data.source={text}",
        "data.tokenizer=wordpiece",
        f"data.vocab_size={size}",
        "data.block_size=32",
        f"run_dir={tmp_path / 'run'}",
    ]
    with pytest.raises(UserError, match="tokenizer"):
        mlpt(
            "pretrain",
            "quickstart",
            f"model.pretrained={run / 'model'}",
            "runtime.num_workers=0",
            "train.steps=1",
            *data,
        )


@pytest.mark.parametrize(
    ("size", "with_tokenizer", "says"),
    [
        (300, True, "does not match the blocks"),
        (512, True, "does not match the blocks"),
        (900, True, "does not match the blocks"),
        (900, False, "use the tokenizer that came with the model"),
    ],
)
def test_a_model_is_not_evaluated_on_blocks_of_another_tokenizer(run, tmp_path, size, with_tokenizer, says):
    text = tmp_path / "other.txt"
    text.write_text("\n\n".join(f"Chapter {n}: quixotic zephyrs vex {n * 7} lynxes {n * n}" for n in range(3000)))
    mlpt("prepare", text, "--out", tmp_path / "blocks", "-s", f"vocab_size={size}", "-s", "block_size=32")
    model = run / "model"
    if not with_tokenizer:
        model = shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    with pytest.raises(UserError, match=says):
        mlpt("evaluate", model, "--blocks", tmp_path / "blocks", "--batches", 1)


@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize(("rounding", "of_1024"), [("floor", 716), ("round", 717)])  # of 716.8
def test_counts_of_pruned_weights_are_rounded_as_asked(run, tmp_path, method, rounding, of_1024):
    how = ["--method", method, "--rounding", rounding, "--seed", 1]
    mlpt("prune", run, "--sparsity", 0.7, "--out", tmp_path / "mask.pt", *how)
    masks = torch.load(tmp_path / "mask.pt", weights_only=True)
    pruned = {int((~mask).sum()) for mask in masks.values() if mask.numel() == 1024}
    assert pruned == {of_1024}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prune", "{run}", "--sparsity", "1", "--out", "x"], "outside"),
        (["prune", "{run}", "--sparsity", "0.5", "--out", "x", "--scope", "everywhere"], "--scope is one of"),
        (["masks", "compare", "only-one"], "two files or more"),
        (["evaluate", "{run}/model"], "--blocks"),
        (["bench", "nothing"], "there is no benchmark 'nothing'"),
        (["pretrain", "one", "two"], "give one recipe"),
        (["pretrain", "--resume", "{run}", "model.layers=9"], "model.layers cannot change in the middle of a run"),
        (["pretrain", "--restart"], "--resume RUN --restart"),
        (["finetune", "{run}", "--tasks", "sst3"], "did you mean 'sst2'?"),
        (["finetune", "{run}"], "no task is named"),
        (["tune", "task_sampling"], "model=FOLDER"),
    ],
)
def test_mistakes_get_one_line(run, words, says):
    with pytest.raises(UserError) as error:
        mlpt(*(word.format(run=run) for word in words))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
