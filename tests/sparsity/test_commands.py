"""What the command line calls, on a folder of a tiny model."""

import json

import numpy as np
import pytest
from tiny_bert import tiny_bert
from transformers import AutoModelForMaskedLM

from mlpt.errors import UserError
from mlpt.sparsity.artefacts import load_masks
from mlpt.sparsity.commands import compare_files, distance_files, export_files, prune, show


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
    neurons = prune(model, "magnitude", 0.5, str(tmp_path / "groups"), structured="neurons")["file"]
    heads = prune(model, "random", 0.5, str(tmp_path / "groups"), structured="heads")["file"]
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
