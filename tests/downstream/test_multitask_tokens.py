"""Spans and labelled words in multi-task fine-tuning: batches, losses, entropies, windows, training, resuming."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from killed_multitask import whole_and_killed
from scipy.stats import entropy as entropy_of
from tiny_tasks import own_tasks, saved_encoder, token_tasks
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification, BertConfig, BertModel

from mlpt.downstream.config import FinetuneConfig
from mlpt.downstream.finetune import finetune
from mlpt.downstream.loading import load_tokenizer
from mlpt.downstream.losses import loss_of
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.data import Collator, TaskSet, cached_features, held_out, read_tasks, tokenise_tasks
from mlpt.downstream.multitask.model import MultitaskModel, SharedEncoder, TaskView
from mlpt.downstream.multitask.run import run_multitask
from mlpt.downstream.multitask.saving import load_multitask_model
from mlpt.downstream.multitask.scoring import Scorer, ScoringConfig
from mlpt.downstream.samplers import MtUncertainty
from mlpt.settings import load_settings
from mlpt.tasks import TaskSource
from mlpt.tasks.features import NO_LABEL, SpanConfig
from mlpt.tasks.metrics import entity_scores
from mlpt.training.tracker import read_metrics

NAMES = ["mood", "animals", "where"]
CPU = torch.device("cpu")


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return saved_encoder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tasks")
    return {"own": [*own_tasks(folder)["own"], *token_tasks(folder)["own"]]}


@pytest.fixture(scope="module")
def tasks(saved, source) -> TaskSet:
    rows = read_tasks(NAMES, TaskSource.model_validate(source))
    return tokenise_tasks(rows, load_tokenizer(saved), BertConfig(), 16, SpanConfig())


@pytest.fixture
def model() -> MultitaskModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    stock = BertModel(BertConfig(vocab_size=60, max_position_embeddings=40, **sizes))
    kinds = {"animals": "token_classification", "where": "span"}
    made = MultitaskModel(SharedEncoder(stock), {"mood": 2, "animals": 3, "where": 2}, kinds=kinds).eval()
    for decoder in made.decoders.values():
        torch.nn.init.normal_(decoder.weight)
    return made


def collator(tasks: TaskSet) -> Collator:
    return Collator([features["train"] for features in tasks.features])


ROWS = [(2, 3), (0, 1), (1, 0), (2, 8), (1, 5), (0, 2)]


def test_a_batch_has_each_rows_own_labels(tasks):
    batch = collator(tasks)(ROWS)
    mood, animals, where = (features["train"] for features in tasks.features)
    assert batch.labels.tolist() == [0, mood.labels[1], 0, 0, 0, mood.labels[2]]
    assert batch.spans[2].tolist() == where.labels[[3, 8]].tolist()
    for place, row in enumerate((0, 5)):
        own = animals.labels[animals.offsets[row] : animals.offsets[row + 1]].tolist()
        padded = own + [NO_LABEL] * (batch.input_ids.shape[1] - len(own))
        assert batch.words[1][place].tolist() == padded
    assert (set(batch.spans), set(batch.words)) == ({2}, {1})


def test_the_loss_is_the_mean_over_tasks_of_single_task_losses(tasks, model):
    batch, found = collator(tasks)(ROWS), {}
    for task, data in enumerate(tasks.data):
        features, own = tasks.features[task]["train"], np.array([row for of, row in ROWS if of == task])
        alone = []  # by itself, so that a window's positions are its own tokens
        for row in own:
            logits = TaskView(model, task)(**features.batch(np.array([row]), CPU)).logits
            start_and_end = dict(zip(("start_logits", "end_logits"), logits.unbind(-1), strict=False))
            outputs = type("Outputs", (), {"logits": logits, **start_and_end})
            alone.append(loss_of(data.task, outputs, features.targets(np.array([row]), CPU)))
        weights = torch.tensor(features.weights[own])
        found[task] = ((torch.stack(alone) * weights).sum() / weights.sum()).float()
    losses = model.task_losses(batch)
    for task, loss in found.items():
        torch.testing.assert_close(losses[task], loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(batch), sum(found.values()) / 3, atol=1e-5, rtol=1e-5)


def test_entropies_follow_their_equations_whatever_is_beside_a_row(tasks, model):
    collate, expected = collator(tasks), []
    scorer = Scorer(ScoringConfig(precision="float32"), model, collate)
    for task, row in ROWS:
        features = tasks.features[task]["train"]
        logits = TaskView(model, task)(**features.batch(np.array([row]), CPU)).logits[0].detach().double()
        p = logits.softmax(0 if task == 2 else -1).numpy()
        if task == 0:
            expected.append(entropy_of(p))
        elif task == 1:
            words = features.words[features.offsets[row] : features.offsets[row + 1]] >= 0
            expected.append(np.mean([entropy_of(one) for one in p[words]]))
        else:
            expected.append((entropy_of(p[:, 0]) + entropy_of(p[:, 1])) / 2)
    np.testing.assert_allclose(scorer(ROWS), expected, atol=1e-5)


@pytest.mark.parametrize("score", ["paper", "code"])
def test_knowing_nothing_is_equally_uncertain_for_every_kind_of_task(tasks, score):
    train = [features["train"] for features in tasks.features]
    classes = tasks.classes(train)
    sizes = [len(one) for one in train]
    config = MtUncertainty.Config(score=score)
    sampler = MtUncertainty(config, NAMES, sizes, classes, batch_size=4, seed=0)
    rows = [(task, row) for task in range(3) for row in range(4)]
    nothing = np.log([2] * 4 + [3] * 4 + [int(train[2].lengths[row]) for row in range(4)])
    order = sampler.ranking(rows, nothing * np.linspace(1, 0.5, 12))  # each a little surer than the one before
    assert order.tolist() == list(range(12))
    surer = nothing.copy()
    surer[8] /= 2
    assert sampler.ranking(rows, surer)[-1] == 8


def configured(saved, source, out, **settings) -> MultitaskConfig:
    defaults = {
        "model": saved,
        "tasks": NAMES,
        "source": source,
        "out": str(out),
        "conditional": {"max_length": 16},
        "batch_size": 12,
        "max_steps": 12,
        "evaluate_every": 6,
        "optimizer": {"lr": 3e-3},
    }
    return load_settings(MultitaskConfig, defaults | settings)


@pytest.mark.parametrize("encoder", ["conditional", "shared"])
def test_all_three_kinds_are_learned_together(saved, source, tmp_path, encoder):
    settings = {"sampler": {"rule": "uniform"}, "freeze": "none", "max_steps": 200, "evaluate_every": 100}
    result = run_multitask(configured(saved, source, tmp_path / "run", encoder=encoder, **settings), quiet)
    assert result.majority["animals"]["dev"]["entity_f1"] == result.majority["where"]["dev"]["f1"] == 0
    assert result.best["animals"]["dev"]["entity_f1"] > 0.9
    assert result.best["where"]["dev"]["f1"] > 0.7


def test_predictions_are_those_files_that_single_task_fine_tuning_writes(saved, source, tmp_path):
    result = run_multitask(configured(saved, source, tmp_path / "run"), quiet)
    alone = FinetuneConfig(
        model=saved, tasks=("animals", "where"), source=TaskSource.model_validate(source), out=str(tmp_path / "alone"),
        seeds=(1,), max_steps=2, max_length=16,
    )  # fmt: skip
    finetune(alone, quiet)
    for task in ("animals", "where"):
        together = [json.loads(line) for line in (tmp_path / f"run/predictions/{task}_dev.jsonl").open()]
        (other,) = (tmp_path / "alone" / task).glob("*/predictions_dev.jsonl")
        by_itself = [json.loads(line) for line in other.open()]
        assert [(line.keys(), line["index"], line["label"]) for line in together] == [
            (line.keys(), line["index"], line["label"]) for line in by_itself
        ]
        if task == "animals":
            scores = entity_scores([line["label"] for line in together], [line["prediction"] for line in together])
            assert scores["entity_f1"] == result.best["animals"]["dev"]["entity_f1"]


SAMPLERS = {
    "mt_uncertainty": {"rule": "mt_uncertainty", "rescore_every": 2},
    "proportional": {"rule": "proportional"},
    "sequential": {"rule": "sequential"},
    "temperature": {"rule": "temperature"},
    "mometas": {"rule": "policy", "interval": 3, "learner": {"rule": "mometas"}},
    "hypergradient": {"rule": "policy", "interval": 3, "learner": {"rule": "hypergradient"}},
}


@pytest.mark.parametrize("rule", list(SAMPLERS))
def test_a_killed_run_goes_on_to_the_very_same_weights(saved, source, tmp_path, monkeypatch, rule):
    def config(name: str) -> MultitaskConfig:
        return configured(saved, source, tmp_path / name, sampler=SAMPLERS[rule], checkpoint_every=5)

    whole, resumed, _ = whole_and_killed(config, monkeypatch)
    assert (resumed.best, resumed.rows) == (whole.best, whole.rows)
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    weights = [load_multitask_model(tmp_path / name / "model") for name in ("whole", "killed")]
    assert (weights[0].spans, weights[0].words) == ({2}, {1})
    for name, weight in weights[0].state_dict().items():
        torch.testing.assert_close(weights[1].state_dict()[name], weight, rtol=0, atol=0)


def test_long_contexts_are_trained_on_in_windows_and_cuts_are_told(saved, source, tmp_path):
    said: list[str] = []
    config = configured(saved, source, tmp_path / "run", encoder="shared", conditional={"max_length": 12}, max_steps=2)
    result = run_multitask(config, said.append)
    windows, rows = result.rows["where"][1], 64
    assert windows > rows
    assert any("task 'where': doc_stride 128 lowered to" in line for line in result.warnings)
    wider = configured(saved, source, tmp_path / "wider", encoder="shared", max_steps=2, conditional={"max_length": 8})
    lines = run_multitask(wider.model_copy(update={"tasks": ("animals",)}), said.append).warnings
    assert [line.split(" words of ")[1].split()[0] for line in lines] == ["train", "dev"]
    assert all("have no token: sentences are cut at 8 tokens" in line and line in said for line in lines)


def test_windows_of_one_question_stay_on_one_side(tasks, saved, source):
    rows = read_tasks(["where"], TaskSource.model_validate(source))
    features = tokenise_tasks(rows, load_tokenizer(saved), BertConfig(), 12, SpanConfig()).features[0]["train"]
    assert len(features) > features.examples == 64
    train, dev = held_out(features, rows[0].splits["train"], 8, seed=0, name="where")
    assert (train.examples, dev.examples, len(train) + len(dev)) == (56, 8, len(features))
    windows = Counter(features.example.tolist())
    assert max(windows.values()) > 1


@pytest.mark.parametrize("task", ["animals", "where"])
def test_cached_token_ids_are_those_that_were_made(tasks, saved, source, tmp_path, task):
    data = next(one for one in tasks.data if one.task.name == task)
    tokenizer = load_tokenizer(saved)

    def features(folder, **span):
        train = data.splits["train"]
        return cached_features(folder, data.task, train, tokenizer, 12, True, SpanConfig(**span))

    fresh = features(None)
    features(tmp_path)
    for name, value in vars(features(tmp_path)).items():
        np.testing.assert_array_equal(value, getattr(fresh, name))
        assert type(value) is type(getattr(fresh, name))
    features(tmp_path, doc_stride=2)
    assert len(list(tmp_path.iterdir())) == (2 if task == "where" else 1)


def test_a_plain_encoder_is_exported_as_the_stock_class_of_each_kind(source, tmp_path):
    for roberta in (False, True):
        folder = tmp_path / str(roberta)
        saved = saved_encoder(folder / "model", roberta)
        run_multitask(configured(saved, source, folder / "run", encoder="shared", max_steps=2), quiet)
        model = load_multitask_model(folder / "run" / "model")
        ids = torch.tensor([[2, 5, 9, 11, 3, 8, 3], [2, 6, 3, 7, 8, 9, 3]])
        ours = [TaskView(model, task)(ids).logits for task in (1, 2)]
        words = AutoModelForTokenClassification.from_pretrained(folder / "run/stock/animals").eval()
        assert words.config.id2label == {0: "B-X", 1: "I-X", 2: "O"}
        torch.testing.assert_close(words(ids).logits, ours[0], atol=1e-5, rtol=1e-4)
        answers = AutoModelForQuestionAnswering.from_pretrained(folder / "run/stock/where").eval()(ids)
        stock = torch.stack([answers.start_logits, answers.end_logits], dim=-1)
        torch.testing.assert_close(stock, ours[1], atol=1e-5, rtol=1e-4)
