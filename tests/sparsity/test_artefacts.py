"""Masks on disk: packed, checked, atomic; the published mask.pt, and what is refused."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_bert import tiny_bert, token_batch
from transformers import AutoModel

from mlpt.errors import UserError
from mlpt.models.masked import add_pooler, attach_scores, backbone_of, maskable_weights
from mlpt.sparsity.artefacts import (
    MaskFile,
    base_hash,
    fit,
    load_masks,
    pack,
    save_masks,
    save_published,
    unpack,
    zero_pruned,
)
from mlpt.sparsity.making import magnitude_masks
from mlpt.sparsity.scores import scores_of_mask


def mask_file(model, sparsity=0.7) -> MaskFile:
    weights = maskable_weights(model)
    masks = magnitude_masks(weights, sparsity)
    return MaskFile.of(masks, "magnitude", sparsity=sparsity, seed=1, base_hash=base_hash(model, list(weights)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packed_bits_come_back(bits):
    mask = torch.tensor(bits)
    packed = pack(mask)
    assert packed.dtype == np.uint8
    assert len(packed) == (len(bits) + 7) // 8
    assert torch.equal(unpack(packed, mask.shape), mask)


def test_a_saved_file_comes_back_with_its_description_and_order(tmp_path):
    file = mask_file(tiny_bert())
    path = save_masks(file, tmp_path)
    assert path == tmp_path / "masks.safetensors"
    loaded = load_masks(tmp_path)
    assert list(loaded.masks) == list(file.masks)
    assert all(torch.equal(loaded.masks[name], mask) for name, mask in file.masks.items())
    assert loaded.description == file.description
    described = json.loads((tmp_path / "sparsity.json").read_text())
    assert described["method"] == "magnitude"
    assert described["sparsity"] == 0.7
    assert described["seed"] == 1
    assert len(described["base_hash"]) == 32
    name = "bert.encoder.layer.0.output.dense.weight"
    assert described["layers"][name] == {"shape": [32, 64], "density": 615 / 2048}  # 2048 - floor(1433.6)


def test_one_uint8_entry_a_parameter_and_one_bit_a_weight(tmp_path):
    file = mask_file(tiny_bert())
    with safe_open(save_masks(file, tmp_path), framework="numpy") as stored:
        assert set(stored.keys()) == set(file.masks)
        for name, mask in file.masks.items():
            entry = stored.get_tensor(name)
            assert entry.dtype == np.uint8
            assert entry.shape == ((mask.numel() + 7) // 8,)


def test_masks_fit_the_same_weights_in_another_stock_class(tmp_path):
    model = tiny_bert()
    model.save_pretrained(tmp_path / "model")
    body = AutoModel.from_pretrained(tmp_path / "model", add_pooling_layer=False)
    fitted = fit(mask_file(model), body)
    assert "encoder.layer.0.output.dense.weight" in fitted


def test_masks_of_another_base_or_shape_are_refused_in_one_line():
    file = mask_file(tiny_bert())
    with pytest.raises(UserError, match="another base model"):
        fit(file, tiny_bert(seed=1))
    assert fit(file, tiny_bert(seed=1), check_base=False)
    smaller = MaskFile.of({name: mask[..., :-1] for name, mask in file.masks.items()}, "magnitude")
    with pytest.raises(UserError, match="in the masks and"):
        fit(smaller, tiny_bert())
    with pytest.raises(UserError, match=r"no weight 'elsewhere\.weight'"):
        fit(MaskFile.of({"elsewhere.weight": torch.ones(2, dtype=torch.bool)}, "magnitude"), tiny_bert())


def test_the_hash_does_not_depend_on_the_pooler_or_on_masks():
    model = tiny_bert()
    names = list(maskable_weights(model))
    before = base_hash(model, names)
    add_pooler(model)
    weights = maskable_weights(model)
    assert base_hash(model, list(weights)) == before
    attach_scores(model, {name: scores_of_mask(mask) for name, mask in magnitude_masks(weights, 0.5).items()})
    assert base_hash(model, list(weights)) == before
    with torch.no_grad():
        backbone_of(model).bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    assert base_hash(model, list(weights)) != before


def test_zeros_and_masks_are_the_same_function_with_a_decoder_that_stays_dense():
    masked, zeroed = tiny_bert(), tiny_bert()
    masks = magnitude_masks(maskable_weights(masked), 0.6)
    attach_scores(masked, {name: scores_of_mask(mask) for name, mask in masks.items()})
    zero_pruned(zeroed, masks)
    tokens = token_batch()
    torch.testing.assert_close(masked(tokens).logits, zeroed(tokens).logits)


@pytest.mark.parametrize("suffix", [".weight", ".weight_mask"])
def test_the_published_file_is_written_and_read(tmp_path, suffix):
    model = tiny_bert()
    add_pooler(model)
    masks = magnitude_masks(maskable_weights(model), 0.7)
    save_published(masks, tmp_path / "mask.pt", suffix)
    stored = torch.load(tmp_path / "mask.pt", weights_only=True)
    assert list(stored) == [name.removesuffix(".weight") + suffix for name in masks]
    assert all(mask.dtype == torch.bool and mask.device.type == "cpu" for mask in stored.values())
    loaded = load_masks(tmp_path / "mask.pt")
    assert list(loaded.masks) == list(masks)
    assert fit(loaded, model)


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("old_format", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_never_run(tmp_path, old_format):
    trace, path = tmp_path / "it-ran", tmp_path / "mask.pt"
    if old_format:
        path.write_bytes(pickle.dumps({"a.weight": Runs(str(trace))}))
    else:
        torch.save({"a.weight": Runs(str(trace))}, path)
    with pytest.raises(UserError, match=r"could run code|damaged"):
        load_masks(path)
    assert not trace.exists()


def test_files_that_are_no_masks_are_refused_in_one_line(tmp_path):
    cases = {
        "floats.pt": lambda path: torch.save({"a.weight": torch.ones(2)}, path),
        "list.pt": lambda path: torch.save([1, 2], path),
        "text.pt": lambda path: Path(path).write_text("hello"),
        "text.safetensors": lambda path: Path(path).write_text("hello"),
        "empty.safetensors": lambda path: Path(path).write_bytes(b""),
    }
    for name, write in cases.items():
        write(tmp_path / name)
        with pytest.raises(UserError) as caught:
            load_masks(tmp_path / name)
        assert "\n" not in str(caught.value), name
    with pytest.raises(UserError, match="no mask file"):
        load_masks(tmp_path / "absent.safetensors")


def test_a_truncated_mask_file_is_refused(tmp_path):
    path = save_masks(mask_file(tiny_bert()), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a complete mask file"):
        load_masks(path)
    save_published({"a.weight": torch.ones(3000, dtype=torch.bool)}, tmp_path / "mask.pt")
    published = (tmp_path / "mask.pt").read_bytes()
    (tmp_path / "mask.pt").write_bytes(published[: len(published) // 2])
    assert not zipfile.is_zipfile(tmp_path / "mask.pt")
    with pytest.raises(UserError, match=r"damaged|refused"):
        load_masks(tmp_path / "mask.pt")


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_masks(mask_file(tiny_bert(), 0.5), tmp_path)
    old = path.read_bytes()

    replace = os.replace

    def dies_half_way(source, target):
        if Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", dies_half_way)
    with pytest.raises(KeyboardInterrupt):
        save_masks(mask_file(tiny_bert(), 0.9), tmp_path)
    assert path.read_bytes() == old
    assert sorted(one.name for one in tmp_path.iterdir()) == ["masks.safetensors", "sparsity.json"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        save_masks(mask_file(tiny_bert()), tmp_path / "file" / "below")
