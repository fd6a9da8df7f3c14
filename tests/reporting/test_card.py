"""The model card: beside a run's model and in what is exported; true to the run, and without paths."""

import json

import pytest
import yaml
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.run.launch import pretrain

RECIPE = {
    "name": "carded",
    "seed": 5,
    "model": {"hidden_size": 32, "layers": 2, "heads": 2},
    "objectives": {"mlm": {}, "cse": {}},
    "meta": {"rules": {"mixture": {"rule": "uniform"}}},
    "train": {"steps": 4, "batch_size": 8, "evaluate_batches": 1, "log_every": 1},
    "runtime": {"num_workers": 0},
    "report": {"progress": "off", "tensorboard": False, "html": False, "licence": "apache-2.0"},
}


@pytest.fixture(scope="module")
def run(small_blocks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards") / "run"
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE | {"data": {"source": small_blocks}, "run_dir": str(folder)}))
    return pretrain(str(recipe)).folder


def export(*words: object) -> None:
    result = CliRunner().invoke(app, ["export", *map(str, words)])
    assert result.exit_code == 0, result.output


def head(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_of_a_run_says_what_the_run_says(run, small_blocks):
    card = (run / "model/README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert head(card)["license"] == "apache-2.0"
    count = AutoModelForMaskedLM.from_pretrained(run / "model").num_parameters()
    assert f"{count:,} parameters" in card
    for said in ("- seed: 5\n", "- steps: 4\n", f"- tokens: {summary['tokens']:,}\n", "- objectives: mlm, cse\n"):
        assert said in card
    assert f"| mlm | {summary['held_out_before']['mlm']:.4g} | {summary['held_out']['mlm']:.4g} |" in card
    assert "| 4 | 0.500 | 0.500 |" in card
    assert str(run) not in card
    assert str(small_blocks) not in card


def test_an_exported_model_has_its_runs_card(run, tmp_path):
    export(run, "--out", tmp_path / "plain")
    assert (tmp_path / "plain/README.md").read_text() == (run / "model/README.md").read_text()
    prune = CliRunner().invoke(app, ["prune", str(run), "--sparsity", "0.7", "--out", str(tmp_path / "masks")])
    assert prune.exit_code == 0
    export(run, "--masks", tmp_path / "masks", "--out", tmp_path / "zeros")
    card = (tmp_path / "zeros/README.md").read_text()
    assert "30." in card.split("Exported with masks: ")[1].split(" %")[0]
    assert str(tmp_path) not in card


def test_a_model_of_unknown_origin_has_a_card_that_says_so(run, tmp_path):
    export(run, "--out", tmp_path / "first")
    export(tmp_path / "first", "--out", tmp_path / "second")
    card = (tmp_path / "second/README.md").read_text()
    assert head(card)["license"] == "unknown"
    assert "names no run of mlpt" in card
