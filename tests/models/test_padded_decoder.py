"""An output layer of a multiple of 64 logits: the plain losses, gradients and files."""

import pytest
import torch
from test_encoder import LENGTH, TESTED, VOCABULARY, build, corrupted
from torch import nn
from transformers import AutoModelForMaskedLM

from mlpt.models import padded_decoder
from mlpt.models.masked import attach_scores, maskable_weights, masked_modules
from mlpt.models.padded_decoder import PaddedDecoder, pad_decoder
from mlpt.training.state import load_model_tensors, model_tensors


def padded(architecture="bert", **settings):
    encoder = build(architecture, **settings)
    pad_decoder(encoder.backbone)
    return encoder.eval()


def loss_and_gradients(encoder):
    loss = encoder("mlm", corrupted(encoder))
    loss.backward()
    return {"loss": loss.detach()} | {name: one.grad for name, one in encoder.named_parameters()}


@pytest.mark.parametrize("architecture", [*TESTED, "metalmo"])
def test_losses_and_gradients_are_those_of_the_plain_layer(architecture, monkeypatch):
    computed = []

    def linear(input, weight, bias):
        computed.append(len(weight))
        return nn.functional.linear(input, weight, bias)

    monkeypatch.setattr(padded_decoder, "linear", linear)
    expected = loss_and_gradients(build(architecture, objectives=("mlm",)).eval())
    assert not computed
    found = loss_and_gradients(padded(architecture, objectives=("mlm",)))
    assert computed == [128], "of a vocabulary of 100"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_loss_over_all_logits_sees_those_of_the_vocabulary_alone():
    encoder = padded()
    logits = encoder.token_logits(encoder.hidden(corrupted(encoder)).flatten(0, 1))
    assert logits.shape == (6 * LENGTH, VOCABULARY.size)


def test_what_is_saved_is_the_plain_model(tmp_path):
    plain, ours = build(), padded()
    plain.save(tmp_path / "plain")
    ours.save(tmp_path / "ours")
    for file in ("config.json", "model.safetensors", "heads.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    assert type(stock.get_output_embeddings()) is nn.Linear
    assert stock.get_output_embeddings().weight.shape == (VOCABULARY.size, 32)


def test_checkpoints_go_from_one_to_the_other():
    plain, ours = build(seed=0), padded(seed=1)
    load_model_tensors(plain, model_tensors(ours))
    load_model_tensors(ours, model_tensors(plain))
    assert all(torch.equal(one, two) for one, two in zip(plain.parameters(), ours.parameters(), strict=True))


def test_a_multiple_of_64_and_masked_decoders_stay_as_they_are():
    assert type(padded(vocabulary_multiple=64).backbone.get_output_embeddings()) is nn.Linear
    encoder = build()
    weights = maskable_weights(encoder)
    attach_scores(encoder, {name: torch.ones_like(one) for name, one in weights.items()}, decoder="masked")
    masked = type(encoder.backbone.get_output_embeddings())
    pad_decoder(encoder.backbone)
    assert type(encoder.backbone.get_output_embeddings()) is masked


def test_masks_reach_a_padded_decoder_too():
    encoder = padded()
    weights = maskable_weights(encoder)
    attach_scores(encoder, {name: torch.zeros_like(one) for name, one in weights.items()}, decoder="masked")
    decoder = encoder.backbone.get_output_embeddings()
    assert not isinstance(decoder, PaddedDecoder)
    assert decoder.scores is masked_modules(encoder)["bert.embeddings.word_embeddings.weight"].scores
