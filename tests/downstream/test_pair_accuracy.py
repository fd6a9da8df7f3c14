"""Accuracy of minimal pairs: overall is the mean over paradigms, a tie is wrong, and the settings decide scores."""

import json

import numpy as np
import pytest
from tiny_subjects import one_at_a_time, tiny_subject

from mlpt.downstream.intervals import wilson
from mlpt.downstream.pair_accuracy import MinimalPairs, accuracies
from mlpt.tasks.minimal_pairs import MinimalPair

QUIET = lambda done, total: None  # noqa: E731
PAIRS = [
    ("the traveler lost the souvenirs.", "the travelers lost souvenir the.", "order", "syntax"),
    ("who runs?", "who run?", "agreement", "morphology"),
    ("the rivers ran.", "the river ran.", "agreement", "morphology"),
    ("under the hill", "the hill under", "order", "syntax"),
]


def file_of(pairs, path):
    rows = [
        {
            "sentence_good": good,
            "sentence_bad": bad,
            "UID": f"{paradigm}_1",
            "linguistics_term": paradigm,
            "field": field,
        }
        for good, bad, paradigm, field in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("masking", ["plain", "within_word"])
def test_a_pair_is_right_where_the_acceptable_sentence_scores_higher(tmp_path, masking):
    subject = tiny_subject()
    suite = MinimalPairs(
        MinimalPairs.Config(data=file_of(PAIRS, tmp_path / "pairs.jsonl"), masking=masking, precision="float32")
    )
    result = suite.measure(subject, QUIET)
    right = [
        one_at_a_time(subject, good, masking)[0] > one_at_a_time(subject, bad, masking)[0] for good, bad, _, _ in PAIRS
    ]
    by_name = {(line.level, line.name): line for line in result.lines}
    assert by_name["phenomenon", "order"].value == np.mean([right[0], right[3]])
    assert by_name["phenomenon", "agreement"].value == np.mean([right[1], right[2]])
    assert by_name["overall", "overall"].value == np.mean(right)
    assert result.notes == []


def test_overall_is_the_mean_over_paradigms_however_large_they_are():
    pairs = [MinimalPair("g", "b", "large")] * 90 + [MinimalPair("g", "b", "small")] * 10
    right = np.array([True] * 90 + [False] * 10)
    lines = {(line.level, line.name): line for line in accuracies(pairs, right)}
    assert lines["overall", "overall"].value == 0.5
    assert lines["overall", "overall"].count == 100
    large = lines["paradigm", "large"]
    assert (large.low, large.high) == (wilson(1.0, 90).low, wilson(1.0, 90).high)
    assert {level for level, _ in lines} == {"overall", "paradigm"}, "no phenomenon or field is known"


def test_ties_are_wrong_and_told(tmp_path):
    same = [("the hill", "the hill", "tie", "x"), ("the hill", "the hill", "tie", "x")]
    suite = MinimalPairs(MinimalPairs.Config(data=file_of(same, tmp_path / "pairs.jsonl")))
    result = suite.measure(tiny_subject(), QUIET)
    assert result.lines[0].value == 0
    assert result.notes == ["2 of 2 pairs are ties, which count as wrong"]


def test_what_was_cut_or_unknown_is_told(tmp_path):
    long = ("the traveler lost the souvenir " * 8, "hill \u96ea", "p", "f")
    suite = MinimalPairs(MinimalPairs.Config(data=file_of([long], tmp_path / "pairs.jsonl"), too_long="truncate"))
    notes = suite.measure(tiny_subject(), QUIET).notes
    assert notes == [
        "1 sentences were cut to the model's 48 tokens",
        "1 tokens that the vocabulary doesn't have were not scored",
    ]


def test_a_slice_of_the_published_pairs_is_scored(shared_data):
    folder = shared_data / "minimal-pairs"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    suite = MinimalPairs(MinimalPairs.Config(data=str(folder / "zorro.jsonl.gz"), masking="plain"))
    suite.pairs = suite.pairs[::2000]  # one a paradigm
    lines = suite.measure(tiny_subject(), QUIET).lines
    assert (lines[0].level, lines[0].count, len([line for line in lines if line.level == "paradigm"])) == (
        "overall",
        23,
        23,
    )
