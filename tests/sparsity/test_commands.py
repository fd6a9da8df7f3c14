"""What the command line calls, on a folder of a tiny model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bert import tiny_bert, token_batch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from mlpt.data.blocks import Blocks
from mlpt.errors import UserError
from mlpt.sparsity.artefacts import load_masks
from mlpt.sparsity.commands import compare_files, convert, distance_files, evaluate_files, export_files, prune, show
from mlpt.sparsity.export import load_compact


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_bert().save_pretrained(folder)
    return str(folder)


def test_prune_show_compare_and_distance(model, tmp_path):
    made = prune(model, "magnitude", 0.7, str(tmp_path / "omp"))
    prune(model, "random", 0.7, str(tmp_path / "rand.safetensors"), seed=1)
    prune(model, "magnitude", 0.7, str(tmp_path / "step_30.pt"))
    assert made["density"] == pytest.approx(0.3, abs=1e-3)
    assert len(made["layers"]) == 14
    omp, rand, published = made["file"], str(tmp_path / "rand.safetensors"), str(tmp_path / "step_30.pt")
    (shown,) = show([omp])
    assert shown["method"] == "magnitude"
    assert shown["base"] == model
    assert json.loads((tmp_path / "rand.sparsity.json").read_text())["seed"] == 1
    found = compare_files([omp, rand, published])
    assert found.means[0][2] == 1
    assert found.means[0][1] == pytest.approx(0.1765, abs=0.02)
    rows = distance_files(omp, [published, rand])
    assert [row["step"] for row in rows] == [0, 30]
    assert rows[1]["distance"] == 0


def test_exports_are_loadable_and_say_how(model, tmp_path):
    masks = prune(model, "magnitude", 0.5, str(tmp_path / "masks"))["file"]
    assert export_files(model, str(tmp_path / "dense"), masks=masks)["loader"] == "transformers.AutoModel"
    zeros = AutoModelForMaskedLM.from_pretrained(tmp_path / "dense").bert.encoder.layer[0].output.dense.weight == 0
    assert float(zeros.float().mean()) == 0.5
    assert load_masks(tmp_path / "dense").description.method == "magnitude"
    neurons = prune(model, "magnitude", 0.5, str(tmp_path / "neurons.npy"), structured="neurons")["file"]
    heads = prune(model, "random", 0.5, str(tmp_path / "heads.npy"), structured="heads")["file"]
    assert int(np.load(heads).sum()) == 4
    made = export_files(model, str(tmp_path / "small"), heads=heads, neurons=neurons)
    assert made["loader"].endswith("load_compact")
    assert made["latency"]["before"]["median_ms"] > 0


def test_bad_requests_are_one_line(model, tmp_path):
    with pytest.raises(UserError, match="mlpt pretrain tamt_imp"):
        prune(model, "imp", 0.5, str(tmp_path))
    with pytest.raises(UserError, match="outside"):
        prune(model, "magnitude", 1.0, str(tmp_path))
    with pytest.raises(UserError, match="two files"):
        compare_files(["one"])
    masks = prune(model, "magnitude", 0.5, str(tmp_path / "masks"))["file"]
    other = tmp_path / "other"
    tiny_bert(seed=1).save_pretrained(other)
    with pytest.raises(UserError, match="another base model"):
        export_files(str(other), str(tmp_path / "out"), masks=masks)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [BertModel, BertForSequenceClassification])
def test_a_language_head_that_nobody_trained_is_neither_exported_nor_measured(kind, small_blocks, tmp_path):
    kind(tiny_bert().config).save_pretrained(tmp_path / "headless")
    for work in (
        lambda: export_files(str(tmp_path / "headless"), str(tmp_path / "out")),
        lambda: evaluate_files(str(tmp_path / "headless"), small_blocks),
    ):
        with pytest.raises(UserError, match="has no trained language-modelling head") as error:
            work()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("described", "says"), [(True, "under its masks"), (False, "do not fit its config.json")])
def test_an_export_that_stock_code_cannot_load_is_one_line(model, small_blocks, tmp_path, described, says):
    neurons = prune(model, "random", 0.5, str(tmp_path / "neurons.npy"), structured="neurons")["file"]
    export_files(model, str(tmp_path / "small"), neurons=neurons)
    if not described:
        (tmp_path / "small" / "compact.json").unlink()
    for work in (
        lambda: evaluate_files(str(tmp_path / "small"), small_blocks),
        lambda: export_files(str(tmp_path / "small"), str(tmp_path / "again")),
        lambda: prune(str(tmp_path / "small"), "magnitude", 0.5, str(tmp_path / "masks")),
    ):
        with pytest.raises(UserError, match=says) as error:
            work()
        assert "\n" not in str(error.value)


def test_a_model_without_a_tokenizer_is_exported_without_one(model, tmp_path):
    export_files(model, str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").glob("*token*")) == []


def test_a_tokenizer_that_lacks_special_tokens_is_exported_with_the_models_length(tmp_path):
    words = WordLevel({"<eos>": 0, "a": 1, "word": 2, "<unk>": 3}, unk_token="<unk>")
    lacking = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="<unk>", eos_token="<eos>")
    lacking.save_pretrained(tmp_path / "model")
    tiny_bert().save_pretrained(tmp_path / "model")
    export_files(str(tmp_path / "model"), str(tmp_path / "out"))
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.pad_token is None
    assert exported.model_max_length == tiny_bert().config.max_position_embeddings


def test_published_masks_are_written_and_read_back_whole(model, tmp_path):
    file = prune(model, "magnitude", 0.7, str(tmp_path / "omp"))["file"]
    made = convert(file, str(tmp_path / "mask.pt"))
    assert made["matrices"] == 14
    stored = torch.load(tmp_path / "mask.pt", weights_only=True)
    ours = load_masks(file)
    assert list(stored) == list(ours.masks)  # `.weight` keys in the model's order, as published
    assert all(
        stored[name].dtype == torch.bool and torch.equal(stored[name], mask) for name, mask in ours.masks.items()
    )
    convert(file, str(tmp_path / "pruned.pt"), ".weight_mask")
    assert all(key.endswith(".weight_mask") for key in torch.load(tmp_path / "pruned.pt", weights_only=True))
    convert(str(tmp_path / "pruned.pt"), str(tmp_path / "back"), model=model)
    back = load_masks(tmp_path / "back")
    assert back.description.base_hash == ours.description.base_hash
    assert all(torch.equal(back.masks[name], mask) for name, mask in ours.masks.items())


def test_a_published_file_of_another_model_gets_no_hash_of_this_one(model, tmp_path):
    wider = BertForMaskedLM(BertConfig(**{**tiny_bert().config.to_dict(), "intermediate_size": 32}))
    wider.save_pretrained(tmp_path / "other")
    prune(str(tmp_path / "other"), "magnitude", 0.5, str(tmp_path / "mask.pt"))
    with pytest.raises(UserError, match="do not fit this model"):
        convert(str(tmp_path / "mask.pt"), str(tmp_path / "masks"), model=model)


def test_descriptions_that_a_glob_brings_along_are_passed_over(model, tmp_path):
    prune(model, "magnitude", 0.5, str(tmp_path / "masks" / "a.safetensors"))
    prune(model, "random", 0.5, str(tmp_path / "masks" / "b.safetensors"))
    prune(model, "random", 0.5, str(tmp_path / "masks"), seed=1)
    files = sorted(str(path) for path in (tmp_path / "masks").glob("*"))
    assert sum(name.endswith("sparsity.json") for name in files) == 3
    assert len(compare_files(files).names) == len(show(files)) == len(distance_files(files[0], files)) == 3


def test_distances_pair_matrices_by_position_too(model, tmp_path):
    file = prune(model, "magnitude", 0.5, str(tmp_path / "ours"))["file"]
    masks = {f"module.{name}": mask for name, mask in load_masks(file).masks.items()}
    torch.save(masks, tmp_path / "mask.pt")
    with pytest.raises(UserError, match="position"):
        distance_files(file, [str(tmp_path / "mask.pt")])
    assert distance_files(file, [str(tmp_path / "mask.pt")], "position")[0]["distance"] == 0


def masked(model: str, folder: Path, **how: str) -> str:
    """The model with masks beside its weights, as a masked run leaves it."""
    shutil.copytree(model, folder)
    prune(str(folder), "magnitude", 0.5, str(folder), **how)
    return str(folder)


def test_a_model_is_exported_with_the_masks_beside_it_unless_it_is_to_be_dense(model, tmp_path):
    own = masked(model, tmp_path / "own")
    made = export_files(own, str(tmp_path / "sparse"))
    assert (made["masks"], made["density"]) == (own, pytest.approx(0.5, abs=1e-3))
    assert export_files(own, str(tmp_path / "dense"), dense=True)["masks"] is None
    name = "bert.encoder.layer.0.output.dense.weight"
    sparse, dense = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / one).get_parameter(name) for one in ("sparse", "dense")
    )
    assert torch.equal(sparse, dense * load_masks(own).masks[name])
    assert dense.ne(0).all()
    # An exported subnetwork keeps its masks: exporting it again changes nothing.
    export_files(str(tmp_path / "sparse"), str(tmp_path / "again"))
    assert torch.equal(AutoModelForMaskedLM.from_pretrained(tmp_path / "again").get_parameter(name), sparse)


@pytest.mark.parametrize("given", ["the artefact", "files of an earlier version", "named"])
def test_masked_heads_make_the_exported_model_smaller(model, tmp_path, given):
    heads = prune(model, "magnitude", 0.5, str(tmp_path / "heads.npy"), structured="heads")["file"]
    if given == "named":
        own, chosen = model, {"masks": prune(model, "magnitude", 0.5, str(tmp_path / "m"), structured="heads")["file"]}
    elif given == "the artefact":
        own, chosen = masked(model, tmp_path / "own", structured="heads"), {}
    else:
        own, chosen = str(shutil.copytree(model, tmp_path / "own")), {}
        shutil.copy(heads, Path(own, "head_mask.npy"))
    made = export_files(own, str(tmp_path / "small"), **chosen)
    assert made["parameters"] < made["parameters_before"]
    export_files(model, str(tmp_path / "same"), heads=heads)
    found, expected = (load_compact(tmp_path / one)(token_batch()).logits for one in ("small", "same"))
    assert torch.equal(found, expected)
    whole = export_files(own, str(tmp_path / "whole"), dense=True)
    assert whole["density"] == 1.0


def test_heads_and_neurons_of_an_earlier_version_act_together(model, tmp_path):
    own = str(shutil.copytree(model, tmp_path / "own"))
    prune(model, "magnitude", 0.5, str(Path(own, "head_mask.npy")), structured="heads")
    prune(model, "magnitude", 0.25, str(Path(own, "ffn_mask.npy")), structured="neurons")
    masks = load_masks(own, tiny_bert()).masks
    assert [mask.shape for mask in masks.values()] == [(32, 32)] * 2 + [(32, 64)] * 2
    pruned = [
        sum(int((~mask[0]).sum()) for mask in pair) for pair in (list(masks.values())[:2], list(masks.values())[2:])
    ]
    assert pruned == [4 * 8, 32]  # 4 of 8 heads of 8 features, a quarter of 128 neurons
    assert export_files(own, str(tmp_path / "small"))["parameters"] < 30_000


def test_masks_of_heads_are_an_artefact_like_those_of_weights(model, tmp_path):
    """With a hash, a place in comparisons and the published forms, there and back."""
    file = prune(model, "magnitude", 0.5, str(tmp_path / "heads"), structured="heads")["file"]
    other = prune(model, "random", 0.5, str(tmp_path / "other"), structured="heads")["file"]
    published = prune(model, "magnitude", 0.5, str(tmp_path / "heads.npy"), structured="heads")["file"]
    assert np.array_equal(np.load(tmp_path / "heads" / "head_mask.npy"), np.load(published))
    kept = [np.load(tmp_path / one / "head_mask.npy") > 0 for one in ("heads", "other")]
    shared = [(a & b).sum() / (a | b).sum() for a, b in zip(*kept, strict=True)]
    assert compare_files([file, other]).means[0][1] == pytest.approx(sum(shared) / 2)
    (shown,) = show([file])
    assert shown["density"] == 0.5
    tiny_bert(seed=1).save_pretrained(tmp_path / "stranger")
    with pytest.raises(UserError, match="another base model"):
        export_files(str(tmp_path / "stranger"), str(tmp_path / "out"), masks=file)

    convert(published, str(tmp_path / "again"), model=model)
    convert(str(tmp_path / "again"), str(tmp_path / "mask.pt"))
    convert(str(tmp_path / "mask.pt"), str(tmp_path / "back.npy"), model=model)
    assert np.array_equal(np.load(tmp_path / "back.npy"), np.load(published))
    assert load_masks(tmp_path / "again").description.base_hash == shown["base_hash"]
    weights = prune(model, "magnitude", 0.5, str(tmp_path / "weights"))["file"]
    with pytest.raises(UserError, match=r"no\.npy would be a mask of heads, or of neurons"):
        convert(weights, str(tmp_path / "no.npy"), model=model)


def test_evaluation_takes_the_masks_beside_the_model_and_may_take_every_block(small_blocks, tmp_path):
    vocabulary = Blocks.open(small_blocks, "dev").vocabulary
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=vocabulary.size, max_position_embeddings=32, pad_token_id=vocabulary.pad, **sizes)
    BertForMaskedLM(config).save_pretrained(tmp_path / "dense")
    own = masked(str(tmp_path / "dense"), tmp_path / "own")
    few = evaluate_files(own, small_blocks, batches=1, batch_size=4)
    assert (few["masks"], few["blocks"], few["split"]) == (own, 4, "test")
    assert few["density"] == pytest.approx(0.5, abs=1e-3)
    assert evaluate_files(own, small_blocks, batches=1, batch_size=4, dense=True)["density"] == 1.0
    rows = len(Blocks.open(small_blocks, "dev"))
    every = evaluate_files(own, small_blocks, split="dev", batches=None, batch_size=16, dense=True)
    assert every["blocks"] == rows


def test_a_structured_mask_beside_a_model_is_in_force_in_an_evaluation(small_blocks, tmp_path):
    vocabulary = Blocks.open(small_blocks, "dev").vocabulary
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=vocabulary.size, max_position_embeddings=32, pad_token_id=vocabulary.pad, **sizes)
    BertForMaskedLM(config).save_pretrained(tmp_path / "dense")
    own = masked(str(tmp_path / "dense"), tmp_path / "own", structured="neurons")
    found = evaluate_files(own, small_blocks, batches=1, batch_size=4)
    assert found["density"] == pytest.approx(0.5)
    assert found["kd_cosine"] > 0


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no head or neuron mask at"), (b"no array", "is not a NumPy array"), ("folder", "cannot read")],
)
def test_a_head_mask_that_cannot_be_read_says_why(model, tmp_path, content, says):
    file = tmp_path / "head_mask.npy"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        export_files(model, str(tmp_path / "out"), heads=str(file))


def test_a_head_mask_among_masks_of_weights_is_said_to_be_one(model, tmp_path):
    heads = prune(model, "magnitude", 0.5, str(tmp_path / "heads.npy"), structured="heads")["file"]
    with pytest.raises(UserError, match="is a mask of heads or neurons"):
        compare_files([heads, heads])


def test_masks_of_weights_that_trained_along_go_onto_others_only_when_asked(model, tmp_path):
    """The bits stay; the hash becomes that of the weights they are meant for, so that they can be measured there."""
    tiny_bert(seed=1).save_pretrained(tmp_path / "other")
    theirs = prune(str(tmp_path / "other"), "magnitude", 0.5, str(tmp_path / "theirs"))["file"]
    with pytest.raises(UserError, match="another base model"):
        convert(theirs, str(tmp_path / "ours"), model=model)
    convert(theirs, str(tmp_path / "ours"), model=model, another_base=True)
    ours, before = load_masks(tmp_path / "ours"), load_masks(theirs)
    assert all(torch.equal(ours.masks[name], mask) for name, mask in before.masks.items())
    own = load_masks(prune(model, "magnitude", 0.5, str(tmp_path / "own"))["file"])
    assert ours.description.base_hash == own.description.base_hash != before.description.base_hash
