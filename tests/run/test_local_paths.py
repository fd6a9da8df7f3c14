"""Which settings name local paths, and which words mean something else whatever lies in the working folder."""

import pytest

from mlpt.config import load_run_config
from mlpt.run.local_paths import absolute_paths, absolute_words, with_absolute_paths
from mlpt.settings import nested, parse_overrides


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name in ("docs", "corpus", "wordpiece", "bert", "sst2", "hub:x"):
        (tmp_path / name).mkdir()
    for name in ("corpus/one.txt", "mine.csv", "sst2.yaml", "scores with spaces"):
        (tmp_path / name).write_text("text,label\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("data.source", "corpus"),
        ("data.source", "corpus/*.txt"),
        ("data.tokenizer", "bert"),
        ("model.pretrained", "./bert"),
        ("blocks", "not/yet/there"),
        ("meta.target.texts", "corpus/one.txt"),
        ("objectives.distill.teacher", "bert"),
        ("objectives.guided.scores", "scores with spaces"),
        ("masks.file", "mine.csv"),
        ("labelled.data_dir", "sst2"),
        ("model", "bert"),
        ("source.data_dir", "sst2"),
        ("tasks", "mine.csv"),
    ],
)
def test_local_paths_are_kept_as_absolute_ones(here, key, place):
    path = str(here / place)
    assert absolute_paths(nested({key: place})) == nested({key: path})
    assert parse_overrides(absolute_words([f"{key}={place}"])) == nested({key: path})


@pytest.mark.parametrize(
    "word",
    [
        *("data.source=docs", "data.source=hub:x", "data.source=s3://bucket/corpus", "data.source=~/corpus"),
        *("data.source=nowhere", "data.tokenizer=wordpiece", "model.pretrained=bert-base-uncased", "name=corpus"),
        *("tasks=sst2", "tasks=[sst2, rte]", "data.documents=corpus", "train.steps=3", "broken=[", "data.source="),
        "seed=" + 3000 * "[",
    ],
)
def test_other_words_stay_as_they_are(here, word):
    assert absolute_words([word]) == [word]


def test_paths_in_lists_and_mappings_are_found(here):
    words = ["data.sources={a: corpus, b.c: [docs, corpus/one.txt]}", "tasks=sst2,mine.csv"]
    found = parse_overrides(absolute_words(words))
    assert found["data"]["sources"] == {"a": str(here / "corpus"), "b.c": ["docs", str(here / "corpus/one.txt")]}
    assert found["tasks"] == f"sst2,{here / 'mine.csv'}"


def test_a_configuration_of_absolute_paths_stays_the_same_object(here):
    config = with_absolute_paths(load_run_config(None, {"data": {"source": "corpus"}}))
    assert config.data.source == str(here / "corpus")
    assert with_absolute_paths(config) is config


def test_paths_in_a_jobs_copy_of_its_working_folder_stay_as_the_next_job_has_another_copy(here, monkeypatch):
    copy = here / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    (copy / "corpus").mkdir(parents=True)
    (copy / "mine.csv").touch()
    monkeypatch.chdir(copy)
    words = ["data.source=corpus", "tasks=mine.csv", f"meta.target.texts={here / 'corpus'}"]
    assert absolute_words(words) == words
