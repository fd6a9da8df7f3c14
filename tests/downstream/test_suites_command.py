"""`mlpt evaluate MODEL... --suite ...` as people type it."""

import json
import shutil

import pytest
from tiny_subjects import tiny_encoder, tokenizer
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.errors import UserError
from mlpt.sparsity.commands import export_files, prune

PAIRS = [("the travelers ran.", "the travelers run."), ("who ran?", "who the?"), ("old hill", "hill old")]


def mlpt(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in range(2):
        tiny_encoder("bert", "wordpiece", seed).save(folder / f"seed{seed}", tokenizer("wordpiece"))
    return [folder / f"seed{seed}" for seed in range(2)]


@pytest.fixture
def pairs(tmp_path):
    rows = [{"sentence_good": good, "sentence_bad": bad, "UID": "p"} for good, bad in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


def test_one_command_measures_models_by_suites_and_leaves_everything_in_one_json_value(models, pairs, tmp_path):
    (tmp_path / "cloze.jsonl").write_text(json.dumps({"text": "the [MASK] ran", "answer": "river"}) + "\n")
    suites = f"pairs={pairs},cloze={tmp_path / 'cloze.jsonl'}"
    said = mlpt("evaluate", *models, "--suite", suites, "-s", "pairs.masking=plain", "--json", tmp_path / "out.json")
    assert "pairs (" in said
    assert "precision@10" in said
    assert "spread" in said
    value = json.loads((tmp_path / "out.json").read_text())["suites"]
    assert list(value) == ["pairs", "cloze"]
    assert list(value["pairs"]["models"]) == [str(model) for model in models]
    assert value["pairs"]["settings"]["masking"] == "plain"
    assert value["cloze"]["over_models"]


def test_masks_are_applied_before_measuring(models, tmp_path):
    rows = [{"text": text, "answer": "the"} for text in ("[MASK] river ran", "near [MASK] hill", "who [MASK]?")]
    (tmp_path / "cloze.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    masked = tmp_path / "masked"  # a model with its masks beside it
    shutil.copytree(models[0], masked)
    masks = prune(str(models[0]), "magnitude", 0.9, str(masked), modules="encoder")["file"]
    zeroed = export_files(str(models[0]), str(tmp_path / "zeroed"), masks)["folder"]
    found = []
    several = [models[0], "--masks", masks], [masked], [zeroed], [models[0]], [masked, "--dense"]
    for number, words in enumerate(several):
        file = tmp_path / f"{number}.json"
        mlpt("evaluate", *words, "--suite", f"cloze={tmp_path / 'cloze.jsonl'}", "--json", file)
        found.append(scores(file))
    assert found[0] == found[1] == found[2]
    assert found[3] == found[4] != found[0]


def scores(file):
    (measured,) = next(iter(json.loads(file.read_text())["suites"].values()))["models"].values()
    return [line["value"] for line in measured["lines"]]


def test_what_was_measured_before_an_error_is_shown_and_written(models, pairs, tmp_path):
    long = {"text": "the traveler lost the souvenir " * 9 + "[MASK]", "answer": "the"}
    (tmp_path / "cloze.jsonl").write_text(json.dumps(long) + "\n")
    words = ["evaluate", models[0], "--suite", f"pairs={pairs},cloze={tmp_path / 'cloze.jsonl'}"]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--json", tmp_path / "out.json"]])
    assert isinstance(result.exception, UserError)
    assert "suite 'cloze': a text has" in str(result.exception)
    assert "pairs (" in result.stdout
    assert scores(tmp_path / "out.json")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{model}", "{model}2"], "several models belong to --suite"),
        (["{model}", "-s", "blimp.masking=plain"], "belong to --suite"),
        (["{model}", "{model}", "--suite", "pairs={pairs}"], "a model is named twice"),
        (["{model}", "--suite", "zorro"], "suite 'zorro': it needs data"),
        (["{model}", "--suite", "blimp=nowhere.jsonl"], "suite 'blimp': cannot read nowhere.jsonl"),
        (["./nowhere", "--suite", "pairs={pairs}"], "there is no folder './nowhere'"),
    ],
)
def test_mistakes_get_one_line(models, pairs, words, says):
    with pytest.raises(UserError) as error:
        mlpt("evaluate", *(word.format(model=models[0], pairs=pairs) for word in words))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
