"""SuperGLUE's records as text pairs; expected spans and stars are the vectors of the MetaLMO specification (1.21)."""

import json

import pytest

from mlpt.tasks import TaskSource, load_task
from mlpt.tasks.markers import find_span, insert_stars


def load(tmp_path, folder, name, *records):
    (tmp_path / folder).mkdir(exist_ok=True, parents=True)
    (tmp_path / folder / "val.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    return load_task(name, TaskSource(data_dir=str(tmp_path), max_malformed_share=0)).splits["dev"]


def test_stars_stand_before_the_given_characters():
    assert insert_stars("abcdef", [1, 3]) == "a*bc*def"
    assert insert_stars("abcdef", [2, 2]) == "ab**cdef"


@pytest.mark.parametrize(
    ("text", "span", "token", "expected"),
    [
        ("Mark told Pete many lies about himself.", "Mark", 0, (0, 4)),
        ("Mark told Pete many lies about himself.", "himself", 6, (31, 38)),
        ("Mark told Pete many lies about himself.", "pete", 2, (10, 14)),
        ("The big old dog, barked", "big dog", 1, (4, 16)),
        ("Mark told Pete many lies about himself.", "absent", 0, (0, 0)),
    ],
)
def test_spans_of_wsc_are_found_as_specified(text, span, token, expected):
    assert find_span(text, span, token) == expected


def test_wsc_is_a_claim_and_a_text_with_stars(tmp_path):
    target = {"span1_index": 0, "span1_text": "Mark", "span2_index": 6, "span2_text": "himself"}
    record = {"idx": 3, "text": "Mark told Pete many lies about himself.", "target": target, "label": True}
    (row,) = load(tmp_path, "WSC", "wsc", record)
    assert (row.first, row.second) == ("Mark = himself", "*Mark* told Pete many lies about *himself*.")
    assert (row.index, row.label) == (3, 1)


def test_wic_has_stars_around_the_word(tmp_path):
    record = {"idx": 0, "word": "bed", "sentence1": "A bed here.", "sentence2": "River bed", "label": False}
    (row,) = load(tmp_path, "WiC", "wic", {**record, "start1": 2, "end1": 5, "start2": 6, "end2": 9})
    assert (row.first, row.second, row.label) == ("A *bed* here.", "River *bed*", 0)


def test_copa_is_two_rows_a_question_of_which_one_is_right(tmp_path):
    record = {"idx": 4, "premise": "It rained.", "question": "effect", "choice1": "Dry.", "choice2": "Wet.", "label": 1}
    rows = load(tmp_path, "COPA", "copa", record)
    assert [(row.first, row.second, row.label, row.group) for row in rows] == [
        ("It rained. effect", "Dry.", 0, (4,)),
        ("It rained. effect", "Wet.", 1, (4,)),
    ]
    (pair,) = load(tmp_path, "COPA", "copa_pair", record)
    assert (pair.second, pair.label) == ("0: Dry. 1: Wet.", 1)


def test_multirc_is_one_row_an_answer_grouped_by_question(tmp_path):
    answers = [{"idx": 8, "text": "Yes", "label": 1}, {"idx": 9, "text": "No", "label": 0}]
    passage = {"text": "It is so.", "questions": [{"idx": 2, "question": "Is it?", "answers": answers}]}
    rows = load(tmp_path, "MultiRC", "multirc", {"idx": 1, "passage": passage})
    assert [(row.index, row.group, row.label) for row in rows] == [(8, (1, 2), 1), (9, (1, 2), 0)]
    assert (rows[0].first, rows[0].second) == ("Question: Is it? Answer: Yes", "It is so.")


def test_record_is_one_row_a_different_entity_whose_end_is_inclusive(tmp_path):
    passage = {
        "text": "Ann met Bob. Ann left.",
        "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 13, "end": 15}],
    }
    query = {"idx": 5, "query": "@placeholder stayed", "answers": [{"start": 8, "end": 10, "text": "Bob"}]}
    rows = load(tmp_path, "ReCoRD", "record", {"idx": 2, "passage": passage, "qas": [query]})
    assert [(row.choice, row.first, row.label) for row in rows] == [("Ann", "Ann stayed", 0), ("Bob", "Bob stayed", 1)]
    assert {(row.group, row.answers) for row in rows} == {((2, 5), ("Bob",))}


def test_a_record_without_its_fields_is_malformed_and_named(tmp_path):
    (tmp_path / "CB").mkdir()
    good = {"idx": 0, "premise": "p", "hypothesis": "h", "label": "neutral"}
    lines = [json.dumps(good), json.dumps({"idx": 1, "premise": "p", "label": "neutral"}), "{not json"]
    (tmp_path / "CB" / "val.jsonl").write_text("\n".join(lines))
    data = load_task("cb", TaskSource(data_dir=str(tmp_path), max_malformed_share=0.7))
    assert [row.label for row in data.splits["dev"]] == [2]
    assert "2 of 3 rows" in data.warnings()[0]
    assert "has no text in 'hypothesis'" in data.warnings()[0]
    assert "val.jsonl:3: is not a JSON object" in data.warnings()[0]


def diagnostics(folder):
    """RTE and the two diagnostic sets in the layout of the original download."""
    rte = {"premise": "it rains", "hypothesis": "it is wet", "label": "entailment", "idx": 0}
    broad = {"sentence1": "all dogs bark", "sentence2": "a dog barks", "label": "entailment", "idx": 7, "logic": "x"}
    gender = {"premise": "she slept", "hypothesis": "she woke", "label": "not_entailment", "idx": 1}
    for place, record in (("RTE/train", rte), ("AX-b/AX-b", broad), ("AX-g/AX-g", gender)):
        path = folder / "SuperGLUE" / f"{place}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record) + "\n")


def test_both_diagnostic_sets_come_with_rte_whose_model_predicts_them(tmp_path):
    diagnostics(tmp_path)
    data = load_task("superglue_rte", TaskSource(data_dir=str(tmp_path)))
    assert data.test_splits == ["axb", "axg"]
    (broad,), (gender,) = data.splits["axb"], data.splits["axg"]
    assert (broad.index, broad.first, broad.second, broad.label) == (7, "a dog barks", "all dogs bark", 0)
    assert (gender.index, gender.first, gender.second, gender.label) == (1, "she woke", "she slept", 1)
    assert load_task("superglue_rte", TaskSource(data_dir=str(tmp_path)), ("train",)).test_splits == []


def test_a_diagnostic_set_alone_has_its_own_metric_and_labels(tmp_path):
    diagnostics(tmp_path)
    data = load_task("axb", TaskSource(data_dir=str(tmp_path / "SuperGLUE")))
    assert (data.task.select, data.task.labels) == ("matthews", ("entailment", "not_entailment"))
    assert list(data.splits) == ["test"]


_ANSWER = {"idx": 0, "text": "x", "label": 1}
_PASSAGE = {"text": "Ann met Bob.", "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}]}
_QUERY = {"idx": 0, "query": "@placeholder left.", "answers": [{"start": 0, "end": 2, "text": "Ann"}]}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "multirc",
            {"idx": 0, "passage": {"text": "t", "questions": [{"idx": 0, "question": "q", "answers": [_ANSWER]}]}},
            [
                {"idx": 1, "passage": {"text": "t", "questions": ["q"]}},
                {"idx": 1, "passage": {"text": "t", "questions": [{"idx": 0, "question": "q", "answers": ["a"]}]}},
                {"idx": float("inf"), "passage": {"text": "t", "questions": []}},
            ],
        ),
        *(
            (
                name,
                {"idx": 0, "passage": _PASSAGE, "qas": [_QUERY]},
                [
                    {"idx": 1, "passage": _PASSAGE, "qas": ["who"]},
                    {"idx": 1, "passage": _PASSAGE, "qas": [{**_QUERY, "answers": ["Ann"]}]},
                    {"idx": 1, "passage": _PASSAGE, "qas": [{**_QUERY, "answers": 5}]},
                    {"idx": 1, "passage": {**_PASSAGE, "entities": ["Ann"]}, "qas": [_QUERY]},
                ],
            )
            for name in ("record", "record_span")
        ),
    ],
)
def test_records_of_another_form_are_malformed_rows(tmp_path, name, good, bad):
    folder = {"multirc": "MultiRC"}.get(name, "ReCoRD")
    (tmp_path / folder).mkdir()
    lines = [json.dumps(record) for record in (good, *bad)]
    nested, huge = "[" * 100_000, '{"idx": 1' + "0" * 5000 + "}"
    (tmp_path / folder / "val.jsonl").write_text("\n".join([*lines, nested, huge]))
    data = load_task(name, TaskSource(data_dir=str(tmp_path), max_malformed_share=0.95))
    assert data.splits["dev"]
    assert data.splits["dev"] == load(tmp_path / "good", folder, name, good)
    assert data.reports[0].malformed == len(bad) + 2
