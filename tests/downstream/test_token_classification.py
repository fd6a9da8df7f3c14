"""Fine-tuning on labelled words: which token has a word's label, the loss, cut sentences, results, resuming."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, BertConfig, BertForTokenClassification

from mlpt.data.tokenizers import train_tokenizer
from mlpt.downstream.cell_run import CellRun
from mlpt.downstream.config import cells
from mlpt.downstream.finetune import evaluate_saved, finetune, prepare
from mlpt.downstream.loading import load_base, load_tokenizer
from mlpt.downstream.losses import word_loss
from mlpt.errors import UserError
from mlpt.storage.checkpoint import Checkpoints
from mlpt.tasks import OwnTask, TaskSource, load_task
from mlpt.tasks.features import NO_LABEL, SpanConfig, make_features, words_begun
from mlpt.tasks.metrics import entity_scores
from mlpt.training.group import Group
from mlpt.training.loop import Loop

CPU = torch.device("cpu")
NAMES = {"ann", "bob", "zoe"}
FILLERS = ["the", "file", "of", "value", "is", "to", "option,"]


def quiet(_):
    pass


def sentence(generator: np.random.Generator, longest: int) -> tuple[list[str], list[str]]:
    """Words of which names, one or two in a row, are entities; the first word of a name always stands in `NAMES`."""
    words, tags = [], []
    while len(words) < generator.integers(3, longest):
        if generator.random() < 0.3:
            words.append(str(generator.choice(sorted(NAMES))))
            tags.append("B-PER")
            if generator.random() < 0.5:
                words.append("smith")
                tags.append("I-PER")
        words.append(str(generator.choice(FILLERS)))
        tags.append("O")
    return words, tags


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> TaskSource:
    folder, generator = tmp_path_factory.mktemp("ner"), np.random.default_rng(0)
    for split, rows in (("train", 256), ("dev", 48)):
        lines = [dict(zip(("words", "tags"), sentence(generator, 12), strict=True)) for _ in range(rows)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "test.jsonl").write_text(json.dumps({"words": ["bob", "is", "the", "value"]}) + "\n")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev", "test")}
    return TaskSource(own=(OwnTask(name="ner", kind="token_classification", first="words", label="tags", **files),))


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(str(tiny_model))


def features_of(source, tokenizer, split="dev", max_length=64):
    data = load_task("ner", source)
    return data, make_features(data.task, data.splits[split], tokenizer, max_length, True, SpanConfig())


def test_only_a_words_first_token_has_its_label(source, tokenizer):
    data, features = features_of(source, tokenizer)
    for row, example in enumerate(data.splits["dev"]):
        words = [example.first[start:end] for start, end in example.spans]
        encoded = tokenizer(words, is_split_into_words=True)
        belongs = encoded.word_ids()
        first = [word if word not in belongs[:at] and word is not None else -1 for at, word in enumerate(belongs)]
        window = slice(features.offsets[row], features.offsets[row + 1])
        assert features.tokens[window].tolist() == encoded["input_ids"]
        assert features.words[window].tolist() == first
        expected = [NO_LABEL if word < 0 else example.label[word] for word in first]
        assert features.labels[window].tolist() == expected


def test_words_begin_where_they_should_whatever_the_tokenizer_joins():
    texts = ["naïve — 東京 don't stop", "a  b\u200b c", "the value of the option 12345 " * 3]
    for kind in ("wordpiece", "bpe"):
        tokenizer = train_tokenizer(kind, lambda: iter(texts * 20), 300)
        for text in texts:
            spans, at = [], 0
            for word in text.split():
                at = text.index(word, at)
                spans += [(at, at + 2), (at + 2, at + len(word))] if word == "don't" else [(at, at + len(word))]
                at += len(word)
            encoded = tokenizer(text, return_offsets_mapping=True)
            offsets = np.array(encoded["offset_mapping"])
            inside = np.array([one == 0 for one in encoded.sequence_ids(0)])
            expected, taken = [-1] * len(offsets), -1
            for word, (start, end) in enumerate(spans):
                covering = [
                    n for n, (a, b) in enumerate(offsets) if inside[n] and a < end and b > start and b > a and n > taken
                ]
                if covering:
                    taken = covering[0]
                    expected[taken] = word
            assert words_begun(offsets, inside, spans).tolist() == expected
            assert sum(word >= 0 for word in expected) >= len(spans) - text.count("\u200b")


def test_targets_are_padded_with_what_the_loss_passes_over(source, tokenizer):
    _, features = features_of(source, tokenizer)
    rows = np.array([5, 0, 7])
    batch, targets = features.batch(rows, CPU), features.targets(rows, CPU)
    assert targets.shape == batch["input_ids"].shape
    for place, row in enumerate(rows):
        own = features.labels[features.offsets[row] : features.offsets[row + 1]].tolist()
        assert targets[place].tolist() == own + [NO_LABEL] * (targets.shape[1] - len(own))
    assert features.weights[rows].tolist() == [(row != NO_LABEL).sum().item() for row in targets]
    kept = features.take(np.array([5, 0, 7]))
    assert torch.equal(kept.targets(np.array([0]), CPU)[0], features.targets(np.array([0]), CPU)[0])


def test_the_loss_is_that_of_the_stock_model(source, tokenizer):
    _, features = features_of(source, tokenizer)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForTokenClassification(BertConfig(vocab_size=len(tokenizer), num_labels=3, **sizes)).eval()
    rows = np.arange(9)
    targets = features.targets(rows, CPU)
    stock = model(**features.batch(rows, CPU), labels=targets)
    torch.testing.assert_close(word_loss(stock.logits, targets), stock.loss)
    assert word_loss(stock.logits, torch.full_like(targets, NO_LABEL)) == 0


@pytest.fixture
def configured(settings, source):
    def make(out, **changed):
        return settings(out, **{"tasks": ("ner",), "source": source, "max_length": 48, "max_steps": 120} | changed)

    return make


def test_entities_are_learned_and_predictions_are_written(configured, source, tmp_path):
    (result,) = finetune(configured(tmp_path, evaluate_every=40), quiet)
    assert result.majority["dev"]["entity_f1"] == 0
    assert result.best["dev"]["entity_f1"] > 0.95
    folder = Path(result.folder)
    lines = [json.loads(line) for line in (folder / "predictions_dev.jsonl").read_text().splitlines()]
    rows = load_task("ner", source).splits["dev"]
    assert [" ".join(line["words"]) for line in lines] == [row.first for row in rows]
    scores = entity_scores([line["label"] for line in lines], [line["prediction"] for line in lines])
    assert scores["entity_f1"] == result.best["dev"]["entity_f1"]
    (tested,) = [json.loads(line) for line in (folder / "predictions_test.jsonl").read_text().splitlines()]
    assert (tested["words"], tested["prediction"]) == (["bob", "is", "the", "value"], ["B-PER", "O", "O", "O"])
    assert "label" not in tested
    model = AutoModelForTokenClassification.from_pretrained(folder / "model")
    assert model.config.id2label == {0: "B-PER", 1: "I-PER", 2: "O"}
    again = evaluate_saved(configured(tmp_path / "again", model=str(folder / "model")), "ner")
    assert again == result.best


def test_how_a_step_is_split_into_passes_does_not_matter(configured, tmp_path):
    losses = []
    for tokens in (10**6, 60):
        config = configured(tmp_path / str(tokens), tokens_per_batch=tokens)
        run = CellRun(cells(config)[0], prepare(config, "ner"), Group(), quiet)
        run.model.eval()  # without dropout, which differs with the passes
        losses.append([])
        for _ in range(3):
            run.loop.train_step()
            losses[-1].append(float(run.last_loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def broken_off_after(monkeypatch, steps):
    """From here on, fine-tuning ends as by Ctrl-C once it has made so many steps."""
    train_step = Loop.train_step

    def broken_off(loop):
        if loop.step == steps:
            raise KeyboardInterrupt
        train_step(loop)

    monkeypatch.setattr(Loop, "train_step", broken_off)


def test_a_killed_run_goes_on_to_the_very_same_weights(configured, tmp_path, monkeypatch):
    changed = {"max_steps": 12, "evaluate_every": 6, "checkpoint_every": 5}
    (whole,) = finetune(configured(tmp_path / "whole", **changed), quiet)
    write = Checkpoints._write

    def slow_disk(*words):
        time.sleep(0.5)
        write(*words)

    broken_off_after(monkeypatch, 8)
    monkeypatch.setattr(Checkpoints, "_write", slow_disk)
    with pytest.raises(KeyboardInterrupt):
        finetune(configured(tmp_path / "killed", **changed), quiet)
    monkeypatch.undo()
    (written,) = (tmp_path / "killed").rglob("checkpoints")
    assert Checkpoints(written).steps() == [5]
    (resumed,) = finetune(configured(tmp_path / "killed", **changed), quiet)
    assert resumed.best == whole.best
    weights = [
        AutoModelForTokenClassification.from_pretrained(Path(one.folder) / "model").state_dict()
        for one in (whole, resumed)
    ]
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


def saved_again(folder, step, change):
    """Write a checkpoint anew after `change` of its state."""
    checkpoints = Checkpoints(folder)
    found = checkpoints.load(step)
    change(found.state)
    checkpoints.save(step, found.state, found.tensors)
    checkpoints.wait()


def test_a_damaged_checkpoint_is_passed_over_and_where_all_are_the_way_on_is_said(configured, tmp_path, monkeypatch):
    changed = {"max_steps": 12, "evaluate_every": 6, "checkpoint_every": 3}
    (whole,) = finetune(configured(tmp_path / "whole", **changed), quiet)
    broken_off_after(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        finetune(configured(tmp_path / "killed", **changed), quiet)
    monkeypatch.undo()
    (written,) = (tmp_path / "killed").rglob("checkpoints")
    assert Checkpoints(written).steps() == [3, 6]
    for step in (6, 3):
        shutil.copytree(tmp_path / "killed", tmp_path / f"damaged from {step} on")
    for folder, steps in (("damaged from 6 on", (6,)), ("damaged from 3 on", (3, 6))):
        for step in steps:
            (state,) = (tmp_path / folder).rglob(f"step_{step:08d}/state.json")
            state.write_text("{")
    (copied,) = (tmp_path / "damaged from 6 on").rglob("checkpoints")
    saved_again(copied, 3, lambda state: state.update(seconds=[1000.0, 0.0]))
    (resumed,) = finetune(configured(tmp_path / "damaged from 6 on", **changed), quiet)
    assert resumed.best == whole.best
    assert resumed.seconds > 1000 > whole.seconds  # of the whole run
    with pytest.raises(UserError, match=r"remove .*checkpoints and run the same command again"):
        finetune(configured(tmp_path / "damaged from 3 on", **changed), quiet)
    saved_again(written, 6, lambda state: state.pop("evaluations"))
    with pytest.raises(UserError, match=r"has no 'evaluations': another version of mlpt wrote it; .* or remove"):
        finetune(configured(tmp_path / "killed", **changed), quiet)


def test_words_beyond_the_longest_row_are_told_and_count_as_wrong(configured, source, tokenizer, tmp_path):
    said = []
    (result,) = finetune(configured(tmp_path, max_length=10, max_steps=30, evaluate_every=30), said.append)
    rows = load_task("ner", source).splits["dev"]
    words = sum(len(row.spans) for row in rows)
    cut = {"is_split_into_words": True, "truncation": True, "max_length": 10}
    seen = [set(tokenizer(row.first.split(" "), **cut).word_ids()) - {None} for row in rows]
    lost = words - sum(map(len, seen))
    note = f"task 'ner': {lost:,} of {words:,} words of dev ({lost / words:.1%}) have no token: "
    assert note + "sentences are cut at 10 tokens" in said
    assert note + "sentences are cut at 10 tokens" in result.warnings
    lines = [json.loads(line) for line in (Path(result.folder) / "predictions_dev.jsonl").read_text().splitlines()]
    assert sum(one is None for line in lines for one in line["prediction"]) == lost
    right = sum(a == b for line in lines for a, b in zip(line["prediction"], line["label"], strict=True))
    assert right / words == pytest.approx(result.best["dev"]["accuracy"])


def test_a_head_of_another_kind_is_not_taken_for_a_head_of_words(configured, settings, tmp_path):
    (words,) = finetune(configured(tmp_path / "words", max_steps=1, evaluate_every=1), quiet)
    saved = str(Path(words.folder) / "model")
    tasks = {
        name: load_task(name, config.source).task
        for name, config in (("ner", configured(tmp_path)), ("mood", settings(tmp_path)))
    }
    assert "classifier.weight" in load_base(saved, tasks["ner"]).weights
    assert "classifier.weight" not in load_base(saved, tasks["mood"]).weights
    with pytest.raises(UserError, match="has no head for task 'mood'"):
        evaluate_saved(settings(tmp_path / "other", model=saved), "mood")
