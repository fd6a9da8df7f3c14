"""Distillation. Vectors: specs/self-evolution_tamt.md, B5, B6."""

import pytest
import torch
from tiny_bert import VOCABULARY, tiny_bert, tiny_roberta, token_batch

from mlpt.data.batch import Batch
from mlpt.data.kd_instances import framed
from mlpt.errors import UserError
from mlpt.models.encoder import Encoder
from mlpt.models.masked import attach_scores, maskable_weights, set_trainable
from mlpt.objectives import make_objectives
from mlpt.objectives.base import Inputs
from mlpt.objectives.distill import attention_scores, hidden_distance, relation_distance
from mlpt.sparsity.scores import initial_scores

STUDENT = torch.tensor([[[1.0, 0], [0, 2]]])
TEACHER = torch.tensor([[[1.0, 1], [0, 1]]])


def encoder(backbone=None, masked=True, prepare=True, **settings) -> Encoder:
    name = "combined" if "mlm" in settings or "distill" in settings else "distill"
    objectives = make_objectives({name: settings, "mlm": {}}, VOCABULARY)
    model = Encoder(backbone or tiny_bert(), objectives)
    if masked:
        attach_scores(model, initial_scores(maskable_weights(model), 0.6))
        set_trainable(model, weights=False, scores=True, heads=True)
    if prepare:
        for objective in objectives.values():
            objective.prepare(model)
    return model.eval()


def states_of(backbone, inputs: Inputs):
    with torch.no_grad():
        return backbone.base_model(
            inputs.input_ids, attention_mask=inputs.attention_mask, output_hidden_states=True
        ).hidden_states


def padded(rows: int = 3, length: int = 10, real: int = 7) -> Inputs:
    tokens = token_batch(rows, length)
    tokens[1:, real:] = VOCABULARY.pad
    return Inputs(tokens, tokens != VOCABULARY.pad)


def test_the_published_example():
    assert float(hidden_distance(STUDENT, TEACHER, "cosine")) == pytest.approx(0.1464, abs=5e-5)
    assert float(hidden_distance(STUDENT, TEACHER, "mse")) == pytest.approx((1 + 1) / 4)


def test_the_loss_is_the_mean_over_layers_without_the_embedding_output():
    model, inputs = encoder(), Inputs(token_batch())
    student, teacher = states_of(model.backbone, inputs), states_of(tiny_bert(), inputs)
    expected = [
        (1 - torch.nn.functional.cosine_similarity(s, t, dim=-1)).mean() for s, t in zip(student, teacher, strict=True)
    ]
    assert float(expected[0]) > 0  # the embeddings differ, and are left out
    torch.testing.assert_close(model("distill", inputs), torch.stack(expected[1:]).mean())


def test_layers_and_positions_can_be_chosen():
    inputs = Inputs(token_batch())
    student, teacher = states_of(encoder().backbone, inputs), states_of(tiny_bert(), inputs)
    last = encoder(layers="last", hidden="mse")("distill", inputs)
    torch.testing.assert_close(last, (student[2] - teacher[2]).pow(2).mean())
    first = encoder(layers=(1,), positions="cls")("distill", inputs)
    torch.testing.assert_close(first, hidden_distance(student[1][:, :1], teacher[1][:, :1], "cosine"))
    with pytest.raises(UserError, match="names layer 3, and the model has 2"):
        encoder(layers=(3,))


def test_padding_is_out_of_the_loss_by_default_and_in_it_as_published():
    inputs = padded()
    student, teacher = states_of(encoder().backbone, inputs), states_of(tiny_bert(), inputs)
    pairs = [1 - torch.nn.functional.cosine_similarity(s, t, dim=-1) for s, t in zip(student, teacher, strict=True)]
    inside = torch.stack([one.mean() for one in pairs[1:]]).mean()
    outside = torch.stack([one[inputs.attention_mask].mean() for one in pairs[1:]]).mean()
    torch.testing.assert_close(encoder(padding="in")("distill", inputs), inside)
    torch.testing.assert_close(encoder(padding="out")("distill", inputs), outside)
    assert abs(float(inside - outside)) > 1e-5


def test_the_teacher_is_dense_frozen_and_shares_the_frozen_weights():
    model = encoder()
    teacher = model.objectives["distill"]._teacher
    own = dict(model.backbone.bert.named_parameters())
    for name, weight in teacher.named_parameters():
        assert weight.data_ptr() == own[name].data_ptr()
        assert not weight.requires_grad
    assert not any("scores" in name for name, _ in teacher.named_parameters())


def test_a_teacher_of_weights_that_train_is_a_copy():
    model = encoder(masked=False)
    teacher = model.objectives["distill"]._teacher
    with torch.no_grad():
        model.backbone.bert.encoder.layer[0].output.dense.weight.add_(1)
    assert torch.equal(
        teacher.encoder.layer[0].output.dense.weight, tiny_bert().bert.encoder.layer[0].output.dense.weight
    )


def test_the_teacher_has_dropout_in_training_only_when_published_mode_asks():
    for mode, differs in (("eval", False), ("train", True)):
        model = encoder(tiny_bert(dropout=0.5), masked=False, teacher_mode=mode)
        model("distill", Inputs(token_batch()))
        assert not model.objectives["distill"]._teacher.training
        model.train()
        model("distill", Inputs(token_batch()))
        assert model.objectives["distill"]._teacher.training is differs


def test_an_unchanged_model_has_no_distance_to_its_teacher():
    for settings in ({}, {"hidden": "mse"}, {"attention": True, "relation": "token"}, {"relation": "sample"}):
        loss = encoder(masked=False, **settings)("distill", padded())
        torch.testing.assert_close(loss.detach(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_attention_scores_are_those_that_eager_attention_puts_into_its_softmax():
    backbone = tiny_bert()
    backbone.set_attn_implementation("eager")
    inputs = padded()
    found = backbone.bert(
        inputs.input_ids, attention_mask=inputs.attention_mask, output_hidden_states=True, output_attentions=True
    )
    for layer in (1, 2):
        raw = attention_scores(backbone.bert, layer, found.hidden_states[layer - 1], inputs.attention_mask)
        blocked = raw.masked_fill(~inputs.attention_mask[:, None, None, :], -torch.inf)
        torch.testing.assert_close(blocked.softmax(-1), found.attentions[layer - 1])
        assert not raw[1, :, :, 7:].any()  # padded keys are zero, as in TinyBERT


def test_relations_are_gram_matrices():
    gram = [states[0] @ states[0].t() / 2**0.5 for states in (STUDENT, TEACHER)]
    expected = (gram[0] - gram[1]).pow(2).mean()
    torch.testing.assert_close(relation_distance(STUDENT, TEACHER, "token"), expected)
    student, teacher = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    means = [states.mean(1) @ states.mean(1).t() for states in (student, teacher)]
    expected = (means[0] - means[1]).pow(2).mean() / 5
    torch.testing.assert_close(relation_distance(student, teacher, "sample"), expected)


def test_attention_and_relations_are_added_to_the_hidden_distance():
    inputs = Inputs(token_batch())
    hidden = encoder()("distill", inputs)
    attention = encoder(hidden="none", attention=True)("distill", inputs)
    relation = encoder(hidden="none", relation="token")("distill", inputs)
    together = encoder(attention=True, relation="token")("distill", inputs)
    torch.testing.assert_close(together, hidden + attention + relation)
    assert float(attention.detach()) > 0
    assert float(relation.detach()) > 0


def test_exactly_one_ordinary_token_a_text_is_corrupted():
    objective = make_objectives({"distill": {"masking": {"mask_share": 1.0, "random_share": 0}}}, VOCABULARY)["distill"]
    tokens = token_batch(50, 9)
    tokens[3, 2:8] = VOCABULARY.pad
    made = objective.corrupt(Batch.of(tokens), torch.Generator().manual_seed(0))
    changed = made.input_ids != tokens
    assert changed.sum(1).tolist() == [1] * 50
    assert (made.input_ids[changed] == VOCABULARY.mask).all()
    assert not VOCABULARY.is_special(tokens[changed]).any()
    assert torch.equal(made.targets, tokens[changed])
    again = objective.corrupt(Batch.of(tokens), torch.Generator().manual_seed(0))
    assert torch.equal(again.input_ids, made.input_ids)


def test_the_corrupted_token_is_masked_kept_or_random_at_80_10_10():
    objective = make_objectives({"distill": {}}, VOCABULARY)["distill"]
    tokens = token_batch(4000, 6)
    made = objective.corrupt(Batch.of(tokens), torch.Generator().manual_seed(1))
    now = made.input_ids.reshape(-1)[made.positions]
    assert len(now) == 4000
    assert float((now == VOCABULARY.mask).float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((now == made.targets).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_texts_stay_plain_when_asked_and_a_text_of_specials_only_has_nothing_to_corrupt():
    plain = make_objectives({"distill": {"corruption": "none"}}, VOCABULARY)["distill"]
    tokens = token_batch()
    assert plain.corrupt(Batch.of(tokens), torch.Generator()).input_ids is tokens
    empty = torch.tensor([[VOCABULARY.cls, VOCABULARY.sep]])
    made = make_objectives({"distill": {}}, VOCABULARY)["distill"].corrupt(Batch.of(empty), torch.Generator())
    assert torch.equal(made.input_ids, empty)
    assert len(made.positions) == 0


def test_combined_is_the_sum_of_both_losses_on_the_same_inputs():
    model = encoder(distill={}, mlm={})
    combined = model.objectives["combined"]
    inputs = combined.corrupt(Batch.of(token_batch(8, 20)), torch.Generator().manual_seed(0))
    assert len(inputs.positions) > 2
    mlm = model("mlm", inputs)
    alone = encoder()
    alone.load_state_dict(model.state_dict())
    torch.testing.assert_close(model("combined", inputs), mlm + alone("distill", inputs))
    weighted = encoder(distill={}, mlm_weight=0.5, distill_weight=3.0)
    torch.testing.assert_close(weighted("combined", inputs), 0.5 * mlm + 3 * alone("distill", inputs))


def test_only_scores_get_gradients_from_distillation():
    model = encoder()
    model("distill", Inputs(token_batch())).backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert names == {f"backbone.{name.replace('weight', 'scores')}" for name in maskable_weights(model)}


def test_roberta_is_distilled_too():
    model = encoder(tiny_roberta(), attention=True)
    assert model("distill", Inputs(token_batch())).item() > 0


def test_a_teacher_folder_is_read_and_a_bad_one_is_one_line(tmp_path):
    tiny_bert(seed=1).save_pretrained(tmp_path)
    assert float(encoder(masked=False, teacher=str(tmp_path))("distill", Inputs(token_batch()))) > 0.01
    with pytest.raises(UserError, match="cannot load the teacher"):
        encoder(teacher=str(tmp_path / "absent"))


def test_settings_that_distil_nothing_are_refused():
    with pytest.raises(UserError, match="nothing to distil"):
        make_objectives({"distill": {"hidden": "none"}}, VOCABULARY)
    with pytest.raises(UserError, match="numbered from 1"):
        make_objectives({"distill": {"layers": [0, 1]}}, VOCABULARY)


def test_token_types_of_a_padded_pair_are_the_published_segments():
    cls, sep, pad = VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.pad
    pair, segments = framed([20, 21], [22, 23, 24], cls, sep, "bert")
    single, none = framed([20, 21], [], cls, sep, "bert")
    tokens = torch.tensor([pair + [pad] * 2, single + [pad] * (len(pair) - len(single) + 2)])
    expected = torch.tensor([segments + [0] * 2, none + [0] * (len(pair) - len(single) + 2)])
    objective = make_objectives({"distill": {"token_types": "pair"}}, VOCABULARY)["distill"]
    made = objective.corrupt(Batch.of(tokens), torch.Generator().manual_seed(0))
    assert torch.equal(made.token_types, expected)
    assert (
        make_objectives({"distill": {}}, VOCABULARY)["distill"].corrupt(Batch.of(tokens), torch.Generator()).token_types
        is None
    )


def test_student_and_teacher_both_see_the_token_types():
    model, tokens = encoder(token_types="pair"), token_batch()
    types = torch.zeros_like(tokens).index_fill(1, torch.arange(5, tokens.shape[1]), 1)
    with torch.no_grad():
        seen = [
            backbone.base_model(tokens, token_type_ids=types, output_hidden_states=True).hidden_states
            for backbone in (model.backbone, tiny_bert())
        ]
    layers = zip(seen[0][1:], seen[1][1:], strict=True)
    expected = torch.stack([hidden_distance(student, teacher, "cosine") for student, teacher in layers]).mean()
    torch.testing.assert_close(model("distill", Inputs(tokens, token_types=types)), expected)
    assert not torch.isclose(expected, model("distill", Inputs(tokens)))


def test_token_types_of_an_encoder_that_has_none_are_refused():
    with pytest.raises(UserError, match="has no second token type"):
        encoder(tiny_roberta(), token_types="pair")
