"""Going on from a saved model: it brings its dimensions, its tokenizer and its objectives' heads, and says so."""

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoTokenizer

from mlpt.config import load_run_config
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.objectives import make_objectives
from mlpt.run.launch import pretrain

VOCABULARY = Vocabulary(size=101, pad=0, mask=4, cls=2, sep=3, unk=1)
SETTINGS = {
    "model": {"architecture": "bert", "hidden_size": 32, "layers": 1, "heads": 2},
    "objectives": {"atd": None},
    "meta": {"rules": {"mixture": {"rule": "uniform"}}},
    "train": {"steps": 4, "batch_size": 4, "evaluate_batches": 1, "optimizer": {"lr": 1e-2}},
    "runtime": {"num_workers": 0},
    "report": {"progress": "off", "tensorboard": False},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of 32 dimensions with heads for dtd and cse, other than a new model of seed 0 would get."""
    folder = tmp_path_factory.mktemp("saved")
    config = ModelConfig(hidden_size=32, layers=1, heads=2, dropout=0.25)
    encoder = build_encoder(config, VOCABULARY, objectives("mlm", "dtd", "cse"), 16, seed=7)
    encoder.save(folder)
    return folder


def objectives(*names):
    return make_objectives({name: {} for name in names}, VOCABULARY)


def heads_of(folder, *names, **settings):
    config = ModelConfig(pretrained=str(folder), **settings)
    return build_encoder(config, VOCABULARY, objectives(*names), 16, seed=0).heads.state_dict()


def test_trained_heads_are_kept_and_what_is_not_there_is_new(saved):
    original = build_encoder(
        ModelConfig(hidden_size=32, layers=1, heads=2), VOCABULARY, objectives("mlm", "dtd", "cse"), 16, seed=7
    ).heads.state_dict()
    kept = heads_of(saved, "mlm", "dtd", "cse")
    assert kept.keys() == original.keys()
    assert all(torch.equal(kept[name], value) for name, value in original.items())
    with_another = heads_of(saved, "dtd", "atd")
    assert torch.equal(with_another["dtd.weight"], original["dtd.weight"])
    assert with_another["atd.weight"].abs().sum() > 0


@pytest.mark.parametrize("key", ["objective_heads", "heads"])
def test_heads_are_drawn_anew_when_asked_for(saved, key):
    kept, new = heads_of(saved, "dtd", "cse"), heads_of(saved, "dtd", "cse", **{key: "new"})
    assert not torch.equal(kept["dtd.weight"], new["dtd.weight"])
    assert torch.equal(new["dtd.weight"], heads_of(saved, "dtd", "cse", **{key: "new"})["dtd.weight"])


def test_a_head_that_does_not_fit_is_one_line(saved, tmp_path):
    wide = build_encoder(ModelConfig(hidden_size=16, layers=1, heads=2), VOCABULARY, objectives("dtd"), 16, seed=0)
    wide.save(tmp_path)
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"the dtd head of .* does not fit .* model\.objective_heads=new") as error:
        heads_of(tmp_path, "dtd")
    assert "\n" not in str(error.value)


def test_dropout_is_the_models_own_unless_it_is_set(saved):
    def dropout(**settings):
        config = ModelConfig(pretrained=str(saved), **settings)
        made = build_encoder(config, VOCABULARY, {}, 16, seed=0).config
        return made.hidden_dropout_prob, made.attention_probs_dropout_prob

    assert dropout() == (0.25, 0.25)
    assert dropout(dropout=0.5) == (0.5, 0.5)


@pytest.mark.parametrize(
    "setting",
    [
        {"hidden_size": 512},
        {"layers": 2},
        {"heads": 4},
        {"architecture": "roberta"},
        {"vocabulary_multiple": 64},
        {"options": {"hidden_act": "relu"}},
    ],
)
def test_what_a_pretrained_model_cannot_honour_is_refused_with_one_line(setting):
    ((name, value),) = setting.items()
    with pytest.raises(UserError) as error:
        load_run_config("quickstart", {"model": {"pretrained": "some/folder", **setting}})
    assert f"{name}={value} is for new models" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_recipe_says_of_new_models_falls_away(tmp_path):
    config = load_run_config("quickstart", {"model": {"pretrained": str(tmp_path), "attention": "eager"}})
    assert config.model == ModelConfig(pretrained=str(tmp_path), attention="eager")
    assert config.data.tokenizer == str(tmp_path)
    again = load_run_config("tamt_mlm", {"model": {"pretrained": "roberta-base"}})
    assert (again.model.pretrained, again.data.tokenizer) == ("roberta-base", "roberta-base")


def test_a_tokenizer_that_is_named_is_the_one_that_is_taken(tmp_path):
    named = {"model": {"pretrained": str(tmp_path)}, "data": {"tokenizer": "elsewhere"}}
    assert load_run_config("quickstart", named).data.tokenizer == "elsewhere"


def test_a_run_from_a_saved_model_has_its_tokenizer_its_dimensions_and_its_heads(small_blocks, tmp_path):
    quiet = Console(quiet=True)
    first = pretrain(
        "quickstart", {**SETTINGS, "data": {"source": small_blocks}, "run_dir": str(tmp_path / "first")}, console=quiet
    )
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Returns the {n}th item of the list, or None if there is none." for n in range(3000)))
    continued = {
        **SETTINGS,
        "model": {"pretrained": str(first.folder / "model")},
        "data": {"source": str(text), "block_size": 16, "workers": 1},
        "blocks": str(tmp_path / "blocks"),
        "run_dir": str(tmp_path / "second"),
        "train": {**SETTINGS["train"], "steps": 1, "optimizer": {"lr": 1e-12}},
    }
    second = pretrain("quickstart", continued, console=quiet)
    ours, theirs = (AutoTokenizer.from_pretrained(run.folder / "model") for run in (first, second))
    assert theirs.get_vocab() == ours.get_vocab()
    recorded = yaml.safe_load((second.folder / "config.yaml").read_text())
    assert recorded["data"]["tokenizer"] == recorded["model"]["pretrained"] == str(first.folder / "model")
    assert recorded["model"]["hidden_size"] is None
    heads = [load_file(run.folder / "model/heads.safetensors") for run in (first, second)]
    for name, value in heads[0].items():
        torch.testing.assert_close(heads[1][name], value, rtol=0, atol=1e-6)
