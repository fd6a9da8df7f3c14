"""Mixed batches, cached token ids, and the scores of candidates."""

import json

import numpy as np
import pytest
import torch
from tiny_tasks import own_tasks, rows_of, saved_encoder
from transformers import BertConfig, BertModel

from mlpt.downstream.loading import load_tokenizer
from mlpt.downstream.multitask.data import Collator, cached_features, held_out, read_tasks
from mlpt.downstream.multitask.model import MultitaskModel, SharedEncoder
from mlpt.downstream.multitask.scoring import Scorer, ScoringConfig
from mlpt.errors import UserError
from mlpt.tasks import Example, TaskSource, load_task
from mlpt.tasks.features import SpanConfig


def test_a_batch_is_padded_to_its_longest_row_and_no_further():
    collate = Collator([rows_of([3, 9], [0, 1]), rows_of([5, 2], [1.5, 3.8], types=True)])
    batch = collate([(1, 0), (0, 0), (1, 1)])
    assert batch.input_ids.shape == (3, 5)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 0, 0], [10, 11, 0, 0, 0]]
    assert batch.attention_mask.sum(1).tolist() == [5, 3, 2]
    assert batch.token_type_ids.tolist() == [[0, 1, 0, 1, 0], [0] * 5, [1, 0, 0, 0, 0]]
    assert batch.task_ids.tolist() == [1, 0, 1]
    assert {task: rows.tolist() for task, rows in batch.rows.items()} == {0: [1], 1: [0, 2]}
    assert batch.labels.tolist() == pytest.approx([1.5, 0, 3.8])


@pytest.mark.parametrize(("dtype", "kept"), [("first_row", 3.0), ("task", 3.8)])
def test_a_score_behind_a_class_id_loses_its_decimals_only_as_published(dtype, kept):
    collate = Collator([rows_of([3], [1]), rows_of([3], [3.8])], dtype)
    assert collate([(0, 0), (1, 0)]).labels.tolist() == pytest.approx([1, kept])


def test_chunks_hold_every_row_once_within_the_budget():
    lengths = [3, 20, 4, 18, 5, 6, 19, 30]
    collate = Collator([rows_of(lengths, [0] * 8)])
    chunks = list(collate.chunks([(0, row) for row in range(8)], tokens=40))
    assert sorted(np.concatenate(chunks).tolist()) == list(range(8))
    assert all(len(chunk) * max(lengths[row] for row in chunk) <= 40 for chunk in chunks)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_row_without_a_label_is_refused_before_anything_is_trained(tmp_path, split):
    row = {"premise": "it sat", "hypothesis": "it ran", "label": "neutral"}
    for name in ("train", "val"):
        rows = [row | {"idx": number} for number in range(3)]
        if name == split:
            del rows[2]["label"]
        (tmp_path / "CB").mkdir(exist_ok=True)
        (tmp_path / f"CB/{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    named = "dev" if split == "val" else split
    with pytest.raises(UserError, match=f"split '{named}' of task 'cb' has rows without a label"):
        read_tasks(["cb"], TaskSource(data_dir=str(tmp_path)))


@pytest.fixture(scope="module")
def mood(tmp_path_factory):
    source = TaskSource.model_validate(own_tasks(tmp_path_factory.mktemp("tasks")))
    return load_task("mood", source), load_tokenizer(saved_encoder(tmp_path_factory.mktemp("model")))


def test_cached_token_ids_are_those_that_were_made(mood, tmp_path):
    (data, tokenizer), files = mood, []
    for _ in range(2):
        made = cached_features(tmp_path, data.task, data.splits["train"], tokenizer, 16, True, SpanConfig())
        files.append(sorted(path.name for path in tmp_path.iterdir()))
    fresh = cached_features(None, data.task, data.splits["train"], tokenizer, 16, True, SpanConfig())
    assert files[0] == files[1]
    for name, value in vars(fresh).items():
        np.testing.assert_array_equal(getattr(made, name), value)


def test_whatever_token_ids_depend_on_makes_another_cache_file(mood, tmp_path):
    data, tokenizer = mood
    train = data.splits["train"]
    variants = [(train, 16, True), (train[1:], 16, True), (train[::-1], 16, True), (train, 8, True), (train, 16, False)]
    for examples, length, types in variants:
        cached_features(tmp_path, data.task, examples, tokenizer, length, types, SpanConfig())
    tokenizer.add_tokens(["new"])
    cached_features(tmp_path, data.task, train, tokenizer, 16, True, SpanConfig())
    assert len(list(tmp_path.iterdir())) == len(variants) + 1


def test_rows_for_the_rule_are_not_trained_on():
    features = rows_of(list(range(2, 42)), list(range(40)))
    train, dev = held_out(features, [Example(n, "") for n in range(40)], 64, seed=0, name="a")
    assert (len(train), len(dev)) == (32, 8)
    assert sorted([*train.labels, *dev.labels]) == list(range(40))


@pytest.mark.parametrize("most", [1, 64])
def test_rows_of_one_question_are_all_for_the_rule_or_all_trained_on(most):
    features = rows_of(list(range(2, 42)), [n // 2 for n in range(40)])
    examples = [Example(n, "", group=(n // 2,)) for n in range(40)]
    train, dev = held_out(features, examples, most, seed=0, name="a")
    assert len(dev) == min(8, 2 * most)
    assert not {*train.labels.tolist()} & {*dev.labels.tolist()}


def scored_model(dropout: float = 0.3) -> tuple[MultitaskModel, Collator]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40, hidden_dropout_prob=dropout,
    )  # fmt: skip
    model = MultitaskModel(SharedEncoder(BertModel(config)), {"a": 2, "b": 3})
    for decoder in model.decoders.values():
        decoder.weight.data.normal_()
    return model.train(), Collator([rows_of([3, 9, 4], [0, 1, 1]), rows_of([5, 12], [2, 0])])


CANDIDATES = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_scores_are_the_entropies_of_each_row_alone():
    model, collate = scored_model()
    found = Scorer(ScoringConfig(precision="float32", max_tokens=12), model, collate)(CANDIDATES)
    assert model.training
    model.eval()
    alone = [model.entropies(collate([row])).item() for row in CANDIDATES]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_bfloat16_scores_are_near_those_of_float32():
    model, collate = scored_model()
    exact = Scorer(ScoringConfig(precision="float32"), model, collate)(CANDIDATES)
    np.testing.assert_allclose(Scorer(ScoringConfig(), model, collate)(CANDIDATES), exact, atol=0.02)


def test_published_scores_have_dropout_in_training_mode_and_none_after_an_evaluation():
    model, collate = scored_model()
    scorer = Scorer(ScoringConfig(precision="float32", dropout="as_trained"), model, collate)
    assert not np.allclose(scorer(CANDIDATES), scorer(CANDIDATES))
    model.eval()
    np.testing.assert_array_equal(scorer(CANDIDATES), scorer(CANDIDATES))
