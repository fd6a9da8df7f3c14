"""Parameter counts, losses and entropies against what CA-MTL's own code gave (specification 2.4, 2.7, 2.11)."""

import pytest
import torch
import torch.multiprocessing
from ranks import run_ranks
from transformers import BertConfig, BertModel

from mlpt.downstream.multitask.model import (
    MultitaskModel,
    SharedEncoder,
    TaskBatch,
    entropy,
    label_tensor,
    losses_of,
    mean_of_tasks,
    rows_of_tasks,
)
from mlpt.models.conditional.encoder import ConditionalConfig, ConditionalEncoder
from mlpt.models.conditional.freezing import freeze_layers, parameter_counts
from mlpt.training.group import Group

NINE = {"cola": 2, "mnli": 3, "mrpc": 2, "sst2": 2, "stsb": 1, "qqp": 2, "qnli": 2, "rte": 2, "wnli": 2}
EIGHT = {name: n for name, n in NINE.items() if name != "wnli"}
PUBLISHED_SIZES = {
    "base": {"vocab_size": 28996},
    "large": {
        "vocab_size": 28996,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}


def published_model(wiring: str, outputs: dict[str, int], norm: str = "scale") -> MultitaskModel:
    """The published model in its real size, without memory: only names and shapes matter here."""
    with torch.device("meta"):
        stock = BertModel(BertConfig(**PUBLISHED_SIZES[wiring]))
        encoder = ConditionalEncoder(stock, ConditionalConfig(wiring=wiring, norm=norm), len(outputs))
        return MultitaskModel(encoder, outputs)


@pytest.mark.parametrize(
    ("wiring", "outputs", "total"),
    [
        ("base", NINE, 128_065_570),
        ("base", EIGHT, 128_063_264),
        ("large", NINE, 480_337_674),
        ("large", EIGHT, 480_334_600),
    ],
)
@pytest.mark.parametrize("norm", ["scale", "scale_and_shift"])
def test_models_have_the_published_number_of_parameters(wiring, outputs, total, norm):
    assert parameter_counts(published_model(wiring, outputs, norm))["total"] == total


@pytest.mark.parametrize(("wiring", "bert", "ratio"), [("base", 108_310_272, 1.182), ("large", 333_579_264, 1.440)])
def test_the_ratio_to_bert_is_what_the_code_has_and_not_the_papers_1_12(wiring, bert, ratio):
    with torch.device("meta"):
        assert parameter_counts(BertModel(BertConfig(**PUBLISHED_SIZES[wiring])))["total"] == bert
    assert parameter_counts(published_model(wiring, NINE))["total"] / bert == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize(
    ("wiring", "layers", "trainable"), [("base", "0-5", 62_670_106), ("large", "0-11", 298_569_098)]
)
def test_published_freezing_leaves_the_published_number_trainable(wiring, layers, trainable):
    model = published_model(wiring, NINE)
    freeze_layers(model, layers, modulation="frozen")
    assert parameter_counts(model)["trainable"] == trainable


def test_the_mended_freezing_trains_the_attention_modulation_of_frozen_layers():
    model = published_model("base", NINE)
    frozen = freeze_layers(model, "0-5")
    assert parameter_counts(model)["trainable"] == 62_670_106 + 6 * (768 * 44 + 44)
    assert not any("attention_bias" in name for name in frozen)


def tiny_model(outputs: dict[str, int]) -> MultitaskModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    return MultitaskModel(SharedEncoder(BertModel(config)), outputs).eval()


def some_batch(tasks: list[int], labels: list[float]) -> TaskBatch:
    ids = torch.randint(5, 60, (len(tasks), 8), generator=torch.Generator().manual_seed(2))
    return TaskBatch(
        ids, torch.ones_like(ids).bool(), torch.tensor(tasks), rows_of_tasks(tasks), label_tensor(labels, "task")
    )


def test_the_loss_is_the_mean_of_the_tasks_and_not_of_the_rows():
    model = tiny_model({"a": 2, "b": 3, "c": 1})
    batch = some_batch([0, 0, 1, 2], [0, 1, 2, 3.8])
    logits = model.logits(batch)
    per_task = [
        torch.nn.functional.cross_entropy(logits[0], torch.tensor([0, 1])),
        torch.nn.functional.cross_entropy(logits[1], torch.tensor([2])),
        (logits[2].squeeze() - 3.8) ** 2,
    ]
    torch.testing.assert_close(model(batch), sum(per_task) / 3)
    torch.testing.assert_close(mean_of_tasks(losses_of(logits, batch)), sum(per_task) / 3)


def test_rows_of_a_mixed_batch_get_the_logits_that_they_get_alone():
    model = tiny_model({"a": 2, "b": 3})
    mixed = model.logits(some_batch([1, 0, 1], [0, 0, 0]))
    alone = model.logits(some_batch([1, 1, 1], [0, 0, 0]))
    torch.testing.assert_close(mixed[1], alone[1][[0, 2]], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "normalised"),
    [([0, 0], 0.999986), ([2, 0], 0.527058), ([10, 0], 0.000720), ([0, 0, 0], 0.999991), ([2, 0, 0], 0.605825)],
)
def test_entropies_are_the_published_ones(logits, normalised):
    value = entropy(torch.tensor([logits], dtype=torch.float32)) / (torch.tensor(len(logits)).log() + 1e-5)
    assert value.item() == pytest.approx(normalised, abs=1e-6)


def test_a_regression_has_no_entropy_and_every_row_keeps_its_place():
    model = tiny_model({"a": 2, "s": 1})
    batch = some_batch([1, 0, 1, 0], [0, 0, 0, 0])
    found = model.entropies(batch)
    torch.testing.assert_close(found[[1, 3]], entropy(model.logits(batch)[0]))
    assert found[[0, 2]].tolist() == [0, 0]


def test_entropies_of_half_precision_logits_are_computed_in_float32():
    assert entropy(torch.zeros(1, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert entropy(torch.zeros(1, 3, dtype=torch.float64)).dtype == torch.float64


def test_published_labels_lose_their_decimals_behind_a_class_id_and_ours_do_not():
    assert label_tensor([1, 3.8], "first_row").tolist() == [1, 3]
    assert label_tensor([3.8, 1], "first_row").tolist() == pytest.approx([3.8, 1])
    assert label_tensor([1, 3.8], "task").tolist() == pytest.approx([1, 3.8])


def one_rank(group: Group) -> None:
    model = tiny_model({"a": 2, "b": 3})
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    batch = some_batch([0, 0], [0, 1])  # the decoder of b is idle
    loss = wrapped(batch)
    loss.backward()
    torch.testing.assert_close(loss.detach(), model(batch).detach())


def test_the_loss_is_one_tensor_that_ddp_can_reduce():
    run_ranks(one_rank, world=1)
