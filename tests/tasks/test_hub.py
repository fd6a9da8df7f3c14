"""Hub datasets: their numbers are matched by the names of their features, and being offline is one clear line."""

import os
import subprocess
import sys

import datasets
import pytest

from mlpt.tasks.hub import read_hub
from mlpt.tasks.reading import FileReport


def table(rows, **labels):
    features = {key: datasets.features.features.generate_from_dict(_feature(value)) for key, value in rows[0].items()}
    features |= {key: datasets.ClassLabel(names=names) for key, names in labels.items()}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def _feature(value):
    if isinstance(value, list):
        return {"_type": "List", "feature": _feature(value[0])}
    if isinstance(value, dict):
        return {key: _feature(inner) for key, inner in value.items()}
    return {"dtype": {str: "string", int: "int32", float: "float32"}[type(value)], "_type": "Value"}


def read(name, rows, **labels):
    report = FileReport("hub")
    examples = read_hub(name, table(rows, **labels), report)
    assert not report.malformed, report.summary()
    return examples


def test_the_hubs_mnli_counts_labels_in_another_order_and_is_mapped_by_name():
    rows = [{"premise": "p", "hypothesis": "h", "label": n, "idx": n} for n in (0, 1, 2, -1)]
    examples = read("mnli", rows, label=["entailment", "neutral", "contradiction"])
    assert [example.label for example in examples] == [1, 2, 0, None]


def test_the_hubs_names_of_binary_labels_are_mapped():
    rows = [{"sentence1": "a", "sentence2": "b", "label": n, "idx": n} for n in (0, 1)]
    assert [e.label for e in read("mrpc", rows, label=["not_equivalent", "equivalent"])] == [0, 1]
    assert [e.label for e in read("wnli", rows, label=["not_entailment", "entailment"])] == [0, 1]
    assert [e.label for e in read("rte", rows, label=["entailment", "not_entailment"])] == [0, 1]


def test_the_hubs_scores_stay_floats():
    rows = [{"sentence1": "a", "sentence2": "b", "label": score, "idx": 0} for score in (3.8, 0.0, -1.0)]
    assert [example.label for example in read("stsb", rows)] == [pytest.approx(3.8), 0.0, None]


def test_the_hubs_cb_is_mapped_by_name_and_boolq_to_false_true():
    rows = [{"premise": "p", "hypothesis": "h", "idx": n, "label": n} for n in (0, 1, 2)]
    assert [e.label for e in read("cb", rows, label=["entailment", "contradiction", "neutral"])] == [1, 0, 2]
    rows = [{"question": "q", "passage": "p", "idx": n, "label": n} for n in (0, 1, -1)]
    assert [e.label for e in read("boolq", rows, label=["False", "True"])] == [0, 1, None]


def test_the_hubs_multirc_and_record_are_grouped_like_the_files():
    row = {"paragraph": "It is.", "question": "Is it?", "answer": "Yes", "label": 1}
    rows = [{**row, "idx": {"paragraph": 3, "question": 4, "answer": 5}}]
    (example,) = read("multirc", rows, label=["False", "True"])
    assert (example.index, example.group, example.label, example.second) == (5, (3, 4), 1, "It is.")
    row = {"passage": "Ann met Bob.", "query": "@placeholder left", "entities": ["Ann", "Bob"], "answers": ["Bob"]}
    examples = read("record", [{**row, "idx": {"passage": 1, "query": 2}}])
    assert [(e.choice, e.label, e.group) for e in examples] == [("Ann", 0, (1, 2)), ("Bob", 1, (1, 2))]


def test_the_hubs_copa_and_wsc_are_read():
    row = {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "idx": 0, "label": 0}
    assert [e.label for e in read("copa", [row], label=["choice1", "choice2"])] == [1, 0]
    row = {"text": "Ann saw her", "span1_index": 0, "span2_index": 2, "span1_text": "Ann", "span2_text": "her"}
    (example,) = read("wsc", [{**row, "idx": 0, "label": 1}], label=["False", "True"])
    assert (example.second, example.label) == ("*Ann* saw *her*", 1)


def test_the_hubs_squad_is_read():
    row = {"id": "x", "title": "t", "context": "In Oslo.", "question": "Where?"}
    (example,) = read("squad", [{**row, "answers": {"text": ["Oslo"], "answer_start": [3]}}])
    assert (example.index, example.answers, example.answer_start) == ("x", ("Oslo",), 3)


def test_a_hub_source_fails_offline_with_one_clear_line(tmp_path):
    code = (
        "from mlpt.tasks import TaskSource, load_task\n"
        "from mlpt.errors import UserError\n"
        "try:\n    load_task('sst2', TaskSource(data_dir='hub:'))\n"
        "except UserError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("cannot get nyu-mll/glue from the hub")
    assert "--data-dir" in lines[0]
