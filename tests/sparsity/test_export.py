"""Folders for other programs, and the losses of subnetworks."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_bert import VOCABULARY, mask_groups, tiny_bert, tiny_encoder_of, tiny_roberta, token_batch
from transformers import AutoModel, AutoModelForMaskedLM

from mlpt.data.batch import Batch
from mlpt.errors import UserError
from mlpt.models.encoder import Encoder
from mlpt.models.masked import attach_scores, current_masks, maskable_weights, masked_modules
from mlpt.objectives import make_objectives
from mlpt.objectives.distill import Distillation
from mlpt.objectives.mlm import MaskedLM
from mlpt.randomness import torch_generator
from mlpt.sparsity.artefacts import MaskFile, base_hash, fit, load_masks, save_masks, zero_pruned
from mlpt.sparsity.evaluate import evaluate_pretraining
from mlpt.sparsity.export import (
    as_exported,
    export_compact,
    export_dense,
    latency_before_and_after,
    latency_when_exported,
    load_compact,
)
from mlpt.sparsity.making import magnitude_masks
from mlpt.sparsity.scores import scores_of_mask


def masks_of(model, sparsity=0.7) -> MaskFile:
    weights = maskable_weights(model)
    known = {"sparsity": sparsity, "base_hash": base_hash(model, list(weights))}
    return MaskFile.of(magnitude_masks(weights, sparsity), "magnitude", **known)


@pytest.mark.parametrize("make", [tiny_bert, tiny_roberta])
def test_a_dense_export_loads_in_stock_classes_and_equals_the_masked_model(tmp_path, make):
    model, file = make(), masks_of(make())
    export_dense(model, file, tmp_path)
    masked = make()
    attach_scores(masked, {name: scores_of_mask(mask) for name, mask in file.masks.items()})
    tokens = token_batch()
    torch.testing.assert_close(AutoModelForMaskedLM.from_pretrained(tmp_path)(tokens).logits, masked(tokens).logits)
    body = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    torch.testing.assert_close(body(tokens)[0], masked.base_model(tokens)[0])
    zeros = (body.encoder.layer[0].output.dense.weight == 0).float().mean()
    assert float(zeros) == pytest.approx(0.7, abs=1e-3)
    assert load_masks(tmp_path).description == file.description
    assert torch.equal(model(tokens).logits, make()(tokens).logits)  # the base is untouched


@pytest.mark.parametrize("family", ["modernbert", "distilbert", "electra"])
def test_a_dense_export_of_another_family_equals_its_masked_model(tmp_path, family):
    model = tiny_encoder_of(family)
    file = masks_of(model)
    export_dense(model, file, tmp_path)
    attach_scores(model, {name: scores_of_mask(mask) for name, mask in file.masks.items()})
    tokens = token_batch()
    torch.testing.assert_close(AutoModelForMaskedLM.from_pretrained(tmp_path)(tokens).logits, model(tokens).logits)


def test_a_dense_export_refuses_masks_of_another_model(tmp_path):
    with pytest.raises(UserError, match="another base model"):
        export_dense(tiny_bert(seed=1), masks_of(tiny_bert()), tmp_path)


def test_equal_neuron_counts_give_a_folder_for_stock_transformers(tmp_path):
    neurons = torch.arange(64).expand(2, 64) % 2 == 0
    made = export_compact(tiny_bert(), tmp_path, {"neurons": neurons})
    assert made["loader"] == "transformers.AutoModelForMaskedLM"
    assert made["parameters"] < made["parameters_before"]
    assert json.loads((tmp_path / "config.json").read_text())["intermediate_size"] == 32
    masked = tiny_bert()
    mask_groups(masked, neurons=neurons)
    tokens = token_batch()
    torch.testing.assert_close(AutoModelForMaskedLM.from_pretrained(tmp_path)(tokens).logits, masked(tokens).logits)
    with pytest.raises(UserError, match="AutoModelForMaskedLM"):
        load_compact(tmp_path)


def test_other_shapes_give_a_folder_for_the_stated_loader(tmp_path):
    heads = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    neurons = torch.rand(2, 64, generator=torch.Generator().manual_seed(1)) > 0.6
    made = export_compact(tiny_bert(), tmp_path, {"heads": heads, "neurons": neurons})
    assert made["loader"] == "mlpt.sparsity.export.load_compact"
    masked = tiny_bert()
    mask_groups(masked, heads=heads, neurons=neurons)
    loaded, tokens = load_compact(tmp_path), token_batch()
    torch.testing.assert_close(loaded(tokens).logits, masked(tokens).logits)
    assert sum(parameter.numel() for parameter in loaded.parameters()) == made["parameters"]
    found = latency_before_and_after(tiny_bert(), loaded, length=16)
    assert found["before"]["median_ms"] > 0
    assert found["ratio"] == pytest.approx(found["before"]["median_ms"] / found["after"]["median_ms"])


def test_the_latency_of_a_run_is_that_of_the_smaller_model(tmp_path):
    masked = encoder()
    kept = {
        "heads": torch.tensor([[1, 0, 0, 1], [0, 1, 1, 1]]).bool(),
        "neurons": torch.arange(128).view(2, 64) % 3 > 0,
    }
    mask_groups(masked, **kept)
    masked.save(tmp_path)
    dense = sum(parameter.numel() for parameter in as_exported(tmp_path).parameters())
    save_masks(MaskFile.of(current_masks(masked), "trained"), tmp_path)
    smaller, tokens = as_exported(tmp_path), token_batch()
    torch.testing.assert_close(smaller(tokens).logits, masked.backbone.eval()(tokens).logits)
    gone = 3 * 8 * 32 * 4 + 3 * 8 * 3 + 43 * (2 * 32 + 1)  # 3 heads of 8 (biases but the output's), 43 neurons
    assert dense - sum(parameter.numel() for parameter in smaller.parameters()) == gone
    assert latency_when_exported(tmp_path, length=16, rounds=1) > 0


class Rows:
    block_size = 12

    def __len__(self) -> int:
        return 8

    def batch(self, rows: np.ndarray) -> Batch:
        return Batch(token_batch(8, 12)[torch.from_numpy(rows)], rows, "test")


def encoder() -> Encoder:
    return Encoder(tiny_bert(), make_objectives({"mlm": {}}, VOCABULARY))


def test_evaluation_gives_the_two_losses_of_the_paper_and_leaves_the_model_as_it_was():
    model = encoder().train()
    dense = evaluate_pretraining(model, Rows(), VOCABULARY, batches=2, batch_size=4)
    assert dense["perplexity"] == pytest.approx(math.exp(dense["mlm_loss"]))
    assert dense["kd_cosine"] == dense["kd_mse"] == 0
    assert dense["density"] == 1
    file = masks_of(model)
    sparse = evaluate_pretraining(model, Rows(), VOCABULARY, file, batches=2, batch_size=4)
    assert sparse["density"] == pytest.approx(0.3, abs=1e-3)
    assert sparse["layers"].keys() == file.masks.keys()
    assert sparse["kd_cosine"] > 0
    assert sparse["kd_mse"] > 0
    assert masked_modules(model) == {}
    assert model.training
    assert evaluate_pretraining(model, Rows(), VOCABULARY, file, batches=2, batch_size=4) == sparse


def test_evaluation_s_kd_losses_are_layer_means_of_batch_means():
    """On plain texts (one text a batch, corruption known) against states taken from two stock models."""
    model, file = encoder().eval(), masks_of(encoder())
    found = evaluate_pretraining(model, Rows(), VOCABULARY, file, batches=1, batch_size=8, seed=5)
    tokens = token_batch(8, 12)
    inputs = Distillation(Distillation.Config(), VOCABULARY).corrupt(
        Batch.of(tokens, "test"), torch_generator(5, "evaluation-noise/distill", 0)
    )
    masked = tiny_bert()
    attach_scores(masked, {name: scores_of_mask(mask) for name, mask in file.masks.items()})
    with torch.no_grad():
        student = masked.bert(inputs.input_ids, output_hidden_states=True).hidden_states[1:]
        teacher = tiny_bert().bert(inputs.input_ids, output_hidden_states=True).hidden_states[1:]
    cosine = (
        sum(float((1 - F.cosine_similarity(s, t, dim=-1)).mean()) for s, t in zip(student, teacher, strict=True)) / 2
    )
    mse = sum(float((s - t).pow(2).mean()) for s, t in zip(student, teacher, strict=True)) / 2
    assert found["kd_cosine"] == pytest.approx(cosine, rel=1e-5)
    assert found["kd_mse"] == pytest.approx(mse, rel=1e-5)


class Pairs(Rows):
    """Texts of two parts, as the KD data have them."""

    def batch(self, rows: np.ndarray) -> Batch:
        plain = super().batch(rows)
        plain.tokens[:, 5] = VOCABULARY.sep
        return plain


def test_evaluation_tells_two_paragraphs_apart_by_token_types_as_published():
    model, file = encoder().eval(), masks_of(encoder())
    found = evaluate_pretraining(model, Pairs(), VOCABULARY, file, 1, 8, seed=5, token_types="pair")
    config = Distillation.Config(token_types="pair")
    inputs = Distillation(config, VOCABULARY).corrupt(
        Pairs().batch(np.arange(8)), torch_generator(5, "evaluation-noise/distill", 0)
    )
    types = torch.zeros(8, 12, dtype=torch.int64)
    types[:, 6:] = 1
    masked = tiny_bert()
    attach_scores(masked, {name: scores_of_mask(mask) for name, mask in file.masks.items()})
    with torch.no_grad():
        student, teacher = (
            one.bert(inputs.input_ids, token_type_ids=types, output_hidden_states=True).hidden_states[1:]
            for one in (masked, tiny_bert())
        )
    mse = sum(float((s - t).pow(2).mean()) for s, t in zip(student, teacher, strict=True)) / 2
    assert found["kd_mse"] == pytest.approx(mse, rel=1e-5)


def test_evaluation_of_every_block_goes_through_them_in_order_and_averages_batch_means():
    model = encoder().eval()
    found = evaluate_pretraining(model, Rows(), VOCABULARY, batches=None, batch_size=3, seed=5)
    mlm, losses = MaskedLM(MaskedLM.Config(), VOCABULARY), []
    for batch, rows in enumerate(([0, 1, 2], [3, 4, 5], [6, 7])):
        inputs = mlm.corrupt(Rows().batch(np.array(rows)), torch_generator(5, "evaluation-noise/mlm", batch))
        with torch.no_grad():
            logits = tiny_bert()(inputs.input_ids).logits.flatten(0, 1)[inputs.positions]
        losses.append(float(F.cross_entropy(logits, inputs.targets)))
    assert found["blocks"] == 8
    assert found["mlm_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_an_exported_or_tuned_subnetwork_keeps_its_masks_and_other_weights_refuse_them():
    model, file = tiny_bert(), masks_of(tiny_bert())
    zero_pruned(model, fit(file, model))
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(2)  # trained on: zeros stay
    assert fit(file, model).keys() == file.masks.keys()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.fill_(1)
    with pytest.raises(UserError, match="another base model"):
        fit(file, model)
