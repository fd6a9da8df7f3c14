"""Probing suites on data whose labels are plain to see: a random encoder's embeddings suffice."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_subjects import tiny_subject, tokenizer

from mlpt.data.prepare import DataConfig, prepare
from mlpt.downstream.probes import DomainProbe, TaskProbe, WordProbe
from mlpt.errors import UserError

QUIET = lambda done, total: None  # noqa: E731
WORDS = ["the", "river", "hill", "small", "old", "bridge", "ran", "under"]


def texts(count, seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(count)]


def values(result):
    return {(line.name, line.metric): line for line in result.lines}


def csv_of(path, rows, label):
    path.write_text("text,label\n" + "".join(f"{text},{label(text)}\n" for text in rows))
    return str(path)


def own_task(tmp_path, label, **settings):
    """The file that describes a task of one's own."""
    csv_of(tmp_path / "train.csv", texts(400, 0), label)
    csv_of(tmp_path / "dev.csv", texts(200, 1), label)
    described = {"name": "mine", "train": "train.csv", "dev": "dev.csv", "first": "text", **settings}
    (tmp_path / "mine.yaml").write_text(json.dumps(described))  # JSON is YAML
    return str(tmp_path / "mine.yaml")


def test_a_task_of_ones_own_is_probed_by_its_own_metrics(tmp_path):
    own = own_task(tmp_path, lambda text: "wet" if "river" in text else "dry")
    suite = TaskProbe(TaskProbe.Config(data=own, layer=0, repeats=4))
    told = []
    result = suite.measure(tiny_subject(), lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    line = values(result)["dev", "accuracy"]
    assert line.value > 0.9
    assert 0.4 < line.baseline < 0.7
    assert line.low <= line.value <= line.high
    assert line.count == 4
    assert ("dev", "macro_f1") in values(result)
    again = suite.measure(tiny_subject(), QUIET)
    assert again == result, "equal seeds, equal scores"


def test_scores_are_numbers_where_the_task_is_a_regression(tmp_path):
    own = own_task(tmp_path, lambda text: text.count("hill") - text.count("river"), kind="regression")
    result = TaskProbe(TaskProbe.Config(data=own, layer=0, repeats=3)).measure(tiny_subject(), QUIET)
    assert values(result)["dev", "pearson"].value > 0.8
    assert values(result)["dev", "pearson"].baseline == 0


def test_a_question_has_one_right_row_and_its_rows_stay_together(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "SuperGLUE" / "COPA"
    folder.mkdir(parents=True)
    for split, count in (("train", 300), ("val", 100)):
        rows = []
        for number in range(count):
            wet = int(random.integers(2))
            choices = {f"choice{n + 1}": "the river ran" if n == wet else "the old hill" for n in range(2)}
            rows.append({"premise": "who ran", "question": "cause", "label": wet, "idx": number, **choices})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = TaskProbe(TaskProbe.Config(task="copa", data=str(tmp_path), repeats=2))
    assert values(suite.measure(tiny_subject(), QUIET))["dev", "accuracy"].value == 1.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "it needs one task"),
        ({"task": "docs_span"}, "one vector a text can't say where"),
        ({"task": "sst2"}, "needs data"),
        ({"task": "ss2"}, "did you mean 'sst2'"),
        ({"data": "words.yaml"}, "take the suite pos=FILE"),
    ],
)
def test_tasks_that_cant_be_probed_get_one_line(settings, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("words.conll").write_text("Ann B-PER\nsaw O\n")
    Path("words.yaml").write_text("name: words\nkind: token_classification\ntrain: words.conll\n")
    with pytest.raises(UserError) as error:
        TaskProbe(TaskProbe.Config(**settings))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Blocks of two domains that share no word, with the tiny subjects' tokenizer."""
    folder = tmp_path_factory.mktemp("domains")
    tokenizer("wordpiece").save_pretrained(folder / "tokenizer")
    random = np.random.default_rng(0)
    with (folder / "text.jsonl").open("w") as file:
        for number in range(400):
            domain, words = (("wet", WORDS[:4]), ("dry", WORDS[4:]))[number % 2]
            file.write(json.dumps({"text": " ".join(random.choice(words, 60)), "domain": domain}) + "\n")
    config = DataConfig(
        source=str(folder / "text.jsonl"),
        tokenizer=str(folder / "tokenizer"),
        block_size=24,
        dev_share=0.5,
        test_share=0,
        workers=1,
    )
    prepare(config, str(folder / "blocks"))
    return str(folder / "blocks")


def test_domains_of_blocks_are_told_apart(blocks):
    result = DomainProbe(DomainProbe.Config(data=blocks, repeats=3)).measure(tiny_subject(), QUIET)
    assert values(result)["domain", "accuracy"].value > 0.95
    assert values(result)["domain", "accuracy"].baseline < 0.7


def test_blocks_of_another_tokenizer_are_refused(blocks):
    suite = DomainProbe(DomainProbe.Config(data=blocks))
    with pytest.raises(UserError, match="does not match the blocks"):
        suite.measure(tiny_subject("roberta", "bpe"), QUIET)


def test_one_domain_is_not_told_apart(blocks, tmp_path):
    (tmp_path / "one.txt").write_text("\n\n".join(texts(300, 0)))
    config = DataConfig(source=str(tmp_path / "one.txt"), tokenizer=f"{blocks}/tokenizer", block_size=24, workers=1)
    prepare(config, str(tmp_path / "one"))
    with pytest.raises(UserError, match="has one domain"):
        DomainProbe(DomainProbe.Config(data=str(tmp_path / "one")))


UPOS = dict(zip(WORDS, ["DET", "NOUN", "NOUN", "ADJ", "ADJ", "NOUN", "VERB", "ADP"], strict=True))


def treebank(path, count, seed):
    lines = []
    for text in texts(count, seed):
        for number, word in enumerate(text.split(), start=1):
            lines.append("\t".join((str(number), word, word, UPOS[word], *["_"] * 6)) + "\n")
        lines.append("\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("layout", ["file", "folder"])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_parts_of_speech_are_read_from_words_states(tmp_path, kind, layout):
    source = treebank(tmp_path / "x-ud-train.conllu", 80, 0)
    treebank(tmp_path / "x-ud-test.conllu", 60, 1)
    suite = WordProbe(WordProbe.Config(data=str(source if layout == "file" else tmp_path), layer=0, repeats=3))
    result = suite.measure(tiny_subject("bert", kind), QUIET)
    line = values(result)["upos", "accuracy"]
    assert line.value > 0.95
    assert line.baseline < 0.6
    assert result.notes == []


def test_words_that_are_cut_off_are_counted(tmp_path):
    words = ["river"] * 40 + ["hill"] * 40
    lines = ["\t".join((str(n), word, word, UPOS[word], *["_"] * 6)) for n, word in enumerate(words, 1)]
    short = ["\t".join((str(n), word, word, UPOS[word], *["_"] * 6)) for n, word in enumerate(WORDS, 1)]
    (tmp_path / "a.conllu").write_text(
        "\n".join([*lines, "", *[line for _ in range(9) for line in (*short, "")]]) + "\n"
    )
    (note,) = (
        WordProbe(WordProbe.Config(data=str(tmp_path / "a.conllu"), repeats=2)).measure(tiny_subject(), QUIET).notes
    )
    assert "words left out: cut off" in note
