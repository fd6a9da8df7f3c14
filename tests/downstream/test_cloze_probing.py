"""Ranks of answers in blanks, against the stock model's logits sorted by hand."""

import json

import numpy as np
import pytest
import torch
from tiny_subjects import tiny_subject

from mlpt.downstream.cloze import Cloze
from mlpt.errors import UserError

QUIET = lambda done, total: None  # noqa: E731
ROWS = [
    {"text": "the [MASK] ran", "answer": "river", "relation": "nouns"},
    {"text": "the [MASK] ran", "answer": "traveler", "relation": "nouns"},
    {"text": "the souvenir near [MASK] river.", "answer": "the", "relation": "words"},
    {"text": "[MASK] river", "answer": "the", "relation": "words"},
    {"text": "the [MASK] ran", "answer": "stonesran", "relation": "nouns"},
]


def suite_of(path, rows=ROWS, **settings):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Cloze(Cloze.Config(data=str(path), precision="float32", **settings))


@torch.no_grad()
def ranks_by_hand(subject, rows, allowed=None, filtered=True):
    """1 + the rivals that score as high as the answer or higher, by the stock model's own forward."""
    tokenizer, special = subject.tokenizer, set(subject.vocabulary.special_ids)

    def token(row):
        before = row["text"].split("[MASK]")[0]
        ids = tokenizer((" " if before.endswith(" ") else "") + row["answer"], add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 else None

    ranks = []
    for row in rows:
        answer = token(row)
        if answer is None or (allowed is not None and answer not in allowed):
            continue
        ids = tokenizer(row["text"].replace("[MASK]", tokenizer.mask_token), return_tensors="pt")["input_ids"]
        at = ids[0].tolist().index(tokenizer.mask_token_id)
        logits = subject.encoder.backbone(input_ids=ids).logits[0, at].tolist()
        others = {token(other) for other in rows if other["text"] == row["text"]} if filtered else {answer}
        rivals = [n for n in range(len(tokenizer)) if n not in special and n not in others | {answer}]
        rivals = [n for n in rivals if allowed is None or n in allowed]
        ranks.append((row["relation"], 1 + sum(logits[n] >= logits[answer] for n in rivals)))
    return ranks


def found(result):
    return {(line.level, line.name, line.metric): line.value for line in result.lines}


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_precision_and_reciprocal_rank_are_those_of_the_stock_models_ranking(tmp_path, kind, filtered):
    subject = tiny_subject("roberta", kind)
    rows = ROWS if kind == "wordpiece" else [row for row in ROWS if row["answer"] in ("the", "river", "traveler")]
    ranks = ranks_by_hand(subject, rows, filtered=filtered)
    values = found(suite_of(tmp_path / "a.jsonl", rows, filtered=filtered).measure(subject, QUIET))
    by_relation = {
        name: np.array([rank for relation, rank in ranks if relation == name]) for name, _ in dict(ranks).items()
    }
    for name, own in by_relation.items():
        assert values["relation", name, "precision@1"] == np.mean(own <= 1)
        assert values["relation", name, "precision@10"] == np.mean(own <= 10)
        assert values["relation", name, "reciprocal_rank"] == pytest.approx(np.mean(1 / own))
    overall = np.mean([np.mean(1 / own) for own in by_relation.values()])
    assert values["overall", "overall", "reciprocal_rank"] == pytest.approx(overall)


def test_answers_of_several_tokens_are_left_out_and_counted(tmp_path):
    result = suite_of(tmp_path / "a.jsonl").measure(tiny_subject(), QUIET)
    assert result.notes == ["1 of 5 questions left out: their answers are not one token"]
    assert result.lines[0].count == 4


def test_a_common_vocabulary_limits_questions_and_rivals(tmp_path):
    (tmp_path / "words.txt").write_text("river\ntraveler\nsouvenir\n")
    subject = tiny_subject()
    suite = suite_of(tmp_path / "a.jsonl", vocabulary=str(tmp_path / "words.txt"))
    result = suite.measure(subject, QUIET)
    allowed = set(subject.tokenizer.convert_tokens_to_ids(["river", "traveler", "souvenir"]))
    ranks = [rank for _, rank in ranks_by_hand(subject, ROWS, allowed)]
    assert found(result)["overall", "overall", "reciprocal_rank"] == pytest.approx(
        np.mean([1 / rank for rank in ranks])
    )
    assert max(ranks) <= 3
    assert "2 of 5 questions left out: their answers are not in the given vocabulary" in result.notes


def test_a_model_that_finds_all_tokens_alike_gets_nothing_right(tmp_path):
    subject = tiny_subject()
    with torch.no_grad():
        for weight in subject.encoder.parameters():
            weight.zero_()
    values = found(suite_of(tmp_path / "a.jsonl", ROWS[2:4]).measure(subject, QUIET))
    tokens = len(subject.tokenizer) - len(subject.vocabulary.special_ids)
    assert values["overall", "overall", "precision@10"] == 0
    assert values["overall", "overall", "reciprocal_rank"] == pytest.approx(1 / tokens)


def test_texts_that_are_too_long_are_refused_or_left_out(tmp_path):
    rows = [*ROWS[:1], {"text": "the traveler lost the souvenir " * 8 + "[MASK]", "answer": "the"}]
    with pytest.raises(UserError, match="too_long=leave_out"):
        suite_of(tmp_path / "a.jsonl", rows).measure(tiny_subject(), QUIET)
    result = suite_of(tmp_path / "a.jsonl", rows, too_long="leave_out").measure(tiny_subject(), QUIET)
    assert result.notes == ["1 of 2 questions left out: too long"]


def test_no_question_left_is_an_error_that_says_why(tmp_path):
    with pytest.raises(UserError, match="no question can be asked of tiny bert: 1 of 1 questions left out"):
        suite_of(tmp_path / "a.jsonl", ROWS[-1:]).measure(tiny_subject(), QUIET)
