"""The tasks made of the embedded documentation: what holds of every row, whatever the documents are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpt.tasks.docs import DOCS, make_docs

NAMES = sorted(DOCS)

# Long words, words ended twice, separators of every kind: what docstrings of unknown packages may hold.
_WORDS = st.sampled_from(["A", "word ", "Returns the list ", "X" * 40, "pkg", "é", "\u2028", "\x85", "\xa0", "\t"])
_ENDS = st.sampled_from([".", "!", "?", " .", "...", ". ", ".\n", "\n\n", "\n \n", "\r\n", ""])
_FRAGMENT = st.one_of(_WORDS, _ENDS, st.text(st.characters(), max_size=8), st.integers(1, 6).map("Long words ".__mul__))
_TEXT = st.lists(_FRAGMENT, max_size=60).map("".join)
DOCUMENTS = st.lists(st.tuples(st.sampled_from(["pkg", "other", "third"]), _TEXT), max_size=12)


def rows_of(name, documents):
    return [(split, row) for split, rows in make_docs(name, documents).splits.items() for row in rows]


@given(DOCUMENTS)
@settings(max_examples=200, deadline=None)
def test_an_answer_stands_where_its_row_says_and_completes_the_question(documents):
    for _, row in rows_of("docs_span", documents):
        (answer,) = row.answers
        assert answer.strip()
        assert row.first.strip()
        assert row.second[row.answer_start :].startswith(answer)
        question = row.answer_start - len(row.first) - 1
        assert row.second[max(0, question) :].startswith(f"{row.first} {answer}")


@given(DOCUMENTS, st.sampled_from(NAMES))
@settings(max_examples=200, deadline=None)
def test_no_text_stands_in_two_splits(documents, name):
    split_of: dict[str, str] = {}
    for split, row in rows_of(name, documents):
        for text in (row.first, row.second) if name == "docs_summary" else (row.first,):
            if text is not None:
                assert split_of.setdefault(text, split) == split


@given(DOCUMENTS, st.sampled_from(NAMES))
@settings(max_examples=200, deadline=None)
def test_rows_are_numbered_once_and_labelled_within_the_task(documents, name):
    data = make_docs(name, documents)
    rows = [row for part in data.splits.values() for row in part]
    assert sorted(row.index for row in rows) == list(range(len(rows)))
    for row in rows:
        if name == "docs_span":
            assert row.label == 1
        else:
            assert 0 <= row.label < len(data.task.labels)
        if name == "docs_package":
            assert data.task.labels[row.label] not in row.first.lower()


@pytest.mark.parametrize("ending", [".", "!", " ."])
def test_a_sentence_of_one_word_is_no_question(ending):
    assert rows_of("docs_span", [("pkg", "X" * 40 + ending)]) == []


def test_a_text_that_is_body_of_one_pair_is_summary_of_no_other():
    chain = [f"This is sentence {n} and it is long enough to be the body of the one before it, too." for n in range(40)]
    summaries = {row.first for _, row in rows_of("docs_summary", [("pkg", "\n\n".join(chain))])}
    assert summaries == set(chain[::2])
