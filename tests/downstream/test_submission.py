"""Submission files as the GLUE and SuperGLUE servers take them."""

import json

from mlpt.downstream.evaluate import Predictions
from mlpt.downstream.submission import write_predictions, write_submission
from mlpt.tasks import TASKS, Example


def submit(tmp_path, name, examples, values, split="test"):
    path = write_submission(tmp_path, TASKS[name], split, examples, Predictions(values))
    return path.name, path.read_text()


def rows(count, **fields):
    return [Example(n, "a", "b", **fields) for n in range(count)]


def test_glue_files_have_label_names_under_the_servers_file_names(tmp_path):
    assert submit(tmp_path, "mnli", rows(3), [1, 2, 0], "test_mismatched") == (
        "MNLI-mm.tsv",
        "index\tprediction\n0\tentailment\n1\tneutral\n2\tcontradiction\n",
    )
    assert submit(tmp_path, "rte", rows(2), [1, 0])[1] == "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    assert submit(tmp_path, "cola", rows(1), [1]) == ("CoLA.tsv", "index\tprediction\n0\t1\n")


def test_scores_of_stsb_have_three_decimals_and_stay_on_the_scale(tmp_path):
    text = submit(tmp_path, "stsb", rows(3), [2.71828, -0.3, 5.4])[1]
    assert text == "index\tprediction\n0\t2.718\n1\t0.000\n2\t5.000\n"


def records(tmp_path, name, examples, values):
    file, text = submit(tmp_path, name, examples, values)
    return file, [json.loads(line) for line in text.splitlines()]


def test_superglue_booleans_are_written_as_each_task_wants_them(tmp_path):
    assert records(tmp_path, "boolq", rows(1), [1]) == ("BoolQ.jsonl", [{"idx": 0, "label": "true"}])
    assert records(tmp_path, "wic", rows(1), [0]) == ("WiC.jsonl", [{"idx": 0, "label": "false"}])
    assert records(tmp_path, "wsc", rows(1), [1]) == ("WSC.jsonl", [{"idx": 0, "label": "True"}])
    assert records(tmp_path, "cb", rows(1), [2]) == ("CB.jsonl", [{"idx": 0, "label": "neutral"}])
    assert records(tmp_path, "superglue_rte", rows(1), [1])[1] == [{"idx": 0, "label": "not_entailment"}]


def test_copa_is_the_number_of_the_choice(tmp_path):
    examples = [Example(choice, "p", "c", group=(7 + n,)) for n in range(2) for choice in (0, 1)]
    expected = [{"idx": 7, "label": 1}, {"idx": 8, "label": 0}]
    assert records(tmp_path, "copa", examples, [1, 2]) == ("COPA.jsonl", expected)
    assert records(tmp_path, "copa_pair", rows(1), [1])[1] == [{"idx": 0, "label": 1}]


def test_multirc_is_nested_by_passage_and_question(tmp_path):
    examples = [
        Example(10, "q", "p", group=(1, 5)),
        Example(11, "q", "p", group=(1, 5)),
        Example(12, "q", "p", group=(1, 6)),
    ]
    name, (record,) = records(tmp_path, "multirc", examples, [1, 0, 1])
    assert name == "MultiRC.jsonl"
    questions = [
        {"idx": 5, "answers": [{"idx": 10, "label": 1}, {"idx": 11, "label": 0}]},
        {"idx": 6, "answers": [{"idx": 12, "label": 1}]},
    ]
    assert record == {"idx": 1, "passage": {"questions": questions}}


def test_record_is_the_text_of_the_entity_by_query(tmp_path):
    examples = [Example(n, "q", "p", group=(3, 9), choice=choice) for n, choice in enumerate(("Ann", "Bob"))]
    assert records(tmp_path, "record", examples, [1]) == ("ReCoRD.jsonl", [{"idx": 9, "label": "Bob"}])


def test_tasks_without_a_server_have_predictions_only(tmp_path):
    task = TASKS["docs_summary"]
    examples = [Example(0, "a", "b", 1), Example(1, "a", "b", 0)]
    assert write_submission(tmp_path, task, "test", examples, Predictions([1, 1])) is None
    path = write_predictions(tmp_path / "p.jsonl", task, examples, Predictions([1, 1]))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"index": 0, "prediction": "own", "label": "own"},
        {"index": 1, "prediction": "own", "label": "other"},
    ]


def test_the_diagnostic_sets_of_superglue_are_files_of_their_own(tmp_path):
    for split, file in (("axb", "AX-b.jsonl"), ("axg", "AX-g.jsonl"), ("test", "RTE.jsonl")):
        path = write_submission(tmp_path, TASKS["superglue_rte"], split, rows(1), Predictions([0]))
        assert path.name == file
        assert json.loads(path.read_text()) == {"idx": 0, "label": "entailment"}
