"""Minimal pairs in every layout that people have them in; what is malformed is told by file and line."""

import gzip
import json

import pytest

from mlpt.errors import UserError
from mlpt.tasks.minimal_pairs import MinimalPair, read_pairs

BLIMP = {
    "sentence_good": "Who left?",
    "sentence_bad": "Who leave?",
    "field": "syntax/semantics",
    "linguistics_term": "agreement",
    "UID": "one_paradigm",
    "pairID": "0",
}
READ = MinimalPair("Who left?", "Who leave?", "one_paradigm", "agreement", "syntax_semantics")


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_original_folder_has_one_file_a_paradigm(tmp_path):
    (tmp_path / "one_paradigm.jsonl").write_text(lines(BLIMP))
    (tmp_path / "another.jsonl").write_text(lines({"sentence_good": "a", "sentence_bad": "b"}))
    (tmp_path / "README.md").write_text("not data")
    assert read_pairs(str(tmp_path)) == [MinimalPair("a", "b", "another"), READ]


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_one_file_for_all(tmp_path, name):
    content = lines(BLIMP, BLIMP | {"UID": "other", "field": "syntax_semantics"}).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    pairs = read_pairs(str(tmp_path / name))
    assert [(pair.paradigm, pair.field) for pair in pairs] == [
        ("one_paradigm", "syntax_semantics"),
        ("other", "syntax_semantics"),
    ]


def test_zorros_text_files_alternate_and_the_ungrammatical_sentence_is_first(tmp_path):
    (tmp_path / "filler-gap-wh_question_object.txt").write_text("bad one .\ngood one .\nbad two .\ngood two .\n")
    (tmp_path / "case-pronoun.txt").write_text("me goes .\ni go .\n")
    pairs = read_pairs(str(tmp_path))
    assert pairs[0] == MinimalPair("i go .", "me goes .", "case-pronoun", "case")
    assert pairs[2] == MinimalPair("good two .", "bad two .", "filler-gap-wh_question_object", "filler-gap")


def test_zorros_one_file_form_names_phenomenon_and_paradigm_together(tmp_path):
    row = {"sentence_bad": "b", "sentence_good": "g", "UID": "agreement_subject_verb-in_question", "pair_id": 3}
    (tmp_path / "zorro.jsonl").write_text(lines(row))
    assert read_pairs(str(tmp_path / "zorro.jsonl"))[0].phenomenon == "agreement_subject_verb"


def test_the_hubs_layout_has_one_configuration_a_paradigm(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "blimp"
    folder.mkdir()
    configurations = []
    for name in ("one_paradigm", "other"):
        row = {key: value for key, value in BLIMP.items() if key != "UID"} if name == "other" else BLIMP
        (folder / f"{name}.jsonl").write_text(lines(row, row))
        configurations.append(f"- config_name: {name}\n  data_files: {name}.jsonl\n")
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configurations) + "---\n")
    assert [pair.paradigm for pair in read_pairs(f"hub:{folder}")] == ["one_paradigm"] * 2 + ["other"] * 2
    assert read_pairs(f"hub:{folder}:one_paradigm") == [READ, READ]
    with pytest.raises(UserError, match="from the hub"):
        read_pairs(f"hub:{folder}:no_such_paradigm")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", lines(BLIMP, {"sentence_good": "x"}), "a.jsonl:2: has no text in 'sentence_bad'"),
        ("a.jsonl", lines(BLIMP) + "{broken\n", "a.jsonl:2: is not a JSON object"),
        ("a.jsonl", "", "a.jsonl has no rows"),
        ("a.txt", "bad .\ngood .\nbad .\n", "a.txt:3: has no grammatical sentence"),
        ("a.txt", "bad .\n\ngood .\n", "a.txt:1: has no grammatical sentence"),
        ("a.jsonl.gz", "not packed", "a.jsonl.gz is not a whole gzip file"),
        ("a.csv", "x", "there are no minimal pairs in"),
    ],
)
def test_bad_files_get_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        read_pairs(str(tmp_path / name))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_gzip_file_is_told(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(*[BLIMP] * 100).encode())[:-9])
    with pytest.raises(UserError, match="is not a whole gzip file"):
        read_pairs(str(tmp_path / "a.jsonl.gz"))


@pytest.mark.parametrize("place", ["nowhere.jsonl", "nowhere", "hub:", "{folder}"])
def test_places_without_pairs_get_one_line(tmp_path, place):
    with pytest.raises(UserError) as error:
        read_pairs(place.format(folder=tmp_path))
    assert "\n" not in str(error.value)


def test_the_published_files_are_whole(shared_data):
    folder = shared_data / "minimal-pairs"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    blimp, zorro = (read_pairs(str(folder / f"{name}.jsonl.gz")) for name in ("blimp", "zorro"))
    assert (len(blimp), len({pair.paradigm for pair in blimp})) == (67_000, 67)
    assert (len({pair.phenomenon for pair in blimp}), len({pair.field for pair in blimp})) == (13, 4)
    assert (len(zorro), len({pair.paradigm for pair in zorro})) == (46_000, 23)
    assert len({pair.phenomenon for pair in zorro}) == 13
