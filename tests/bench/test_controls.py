"""Texts of the control studies: junk is junk of the same words, and nothing trains on the target."""

import json
import random
from collections import Counter

import pytest

from mlpt.bench.controls import PASSAGE, main, passages, recoded, shuffled, write_controls
from mlpt.errors import UserError


def write_text(path, seed, count):
    generator = random.Random(seed)
    words = [f"{chr(97 + seed)}{number}" for number in range(400)]
    rows = [{"text": " ".join(generator.choices(words, k=PASSAGE + 7))} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def texts(tmp_path):
    return [write_text(tmp_path / f"{seed}.jsonl", seed, 60) for seed in range(3)]


def written(folder):
    rows = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}
    assert all(row["domain"] == name for name, of in rows.items() for row in of)
    return {name: [row["text"] for row in of] for name, of in rows.items()}


def test_the_folders_hold_domains_of_one_size_and_a_target_of_their_own(texts, tmp_path):
    counts = write_controls(texts, tmp_path / "out", size=20_000)
    junk, slices, target = (written(tmp_path / "out" / name) for name in ("junk", "slices", "target"))
    assert sorted(junk) == ["good1", "good2", "good3", "recoded", "repeated", "shuffled"]
    assert sorted(slices) == [f"slice{number}" for number in range(1, 7)]
    assert counts == {name: len(of) for name, of in (junk | slices | target).items()}
    for name in ("good1", "good2", "good3", "shuffled", "repeated", *slices):
        size = sum(map(len, (junk | slices)[name]))
        assert 20_000 <= size < 20_000 + max(map(len, (junk | slices)[name])), name
    held_out = set(target["target"])
    assert len(held_out) == 9  # every 20th of 3 x 60
    assert not held_out & {one for name in ("good1", "good2", "good3") for one in junk[name]}
    assert not held_out & {one for of in slices.values() for one in of}
    assert not set(slices["slice1"]) & set(slices["slice2"])
    assert len({tuple(sorted(Counter(one.split()).items())) for one in junk["repeated"]}) == 1  # the same lines again
    assert len(set(junk["repeated"])) > 1


def test_shuffling_keeps_the_words_and_recoding_their_pattern(texts):
    found = list(passages(texts[0]))[:20]
    generator = random.Random(0)
    mixed = shuffled(found[0], generator)
    assert mixed != found[0]
    assert Counter(mixed.split()) == Counter(found[0].split())
    coded = recoded(found, generator)
    plain, code = " ".join(found).split(), " ".join(coded).split()
    pairs = set(zip(plain, code, strict=True))
    assert len(pairs) == len(set(plain))  # one word, one code
    assert set(code) == set(plain)
    assert sum(word == code for word, code in pairs) < 10


def test_too_little_text_is_one_line(texts, tmp_path, capsys):
    assert main([*texts, "--out", str(tmp_path / "out"), "--megabytes", "5"]) == 2
    assert capsys.readouterr().err == (
        "mlpt: the texts are too short for domains of that size: give more text, or fewer --megabytes\n"
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="too short"):
        write_controls(texts[:1], tmp_path / "out", size=10**6)


def test_what_is_somebodys_stays_and_texts_made_before_are_replaced_on_request(texts, tmp_path, capsys):
    mine = tmp_path / "mine" / "junk" / "good1.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("notes")
    assert main([*texts, "--out", str(tmp_path / "mine"), "--megabytes", "0.01", "--overwrite"]) == 2
    assert mine.read_text() == "notes"
    words = [*texts, "--out", str(tmp_path / "out"), "--megabytes", "0.01"]
    assert [main(words), main(words), main([*words, "--overwrite"])] == [0, 2, 0]
    assert "--overwrite" in capsys.readouterr().err
