"""Scores of tokens on disk: what is kept, how thresholds cut, what goes on after a kill, and what is refused."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlpt.data.blocks import Blocks
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.score_parts import begin, check_place, finish, read_part, scores_place, write_part
from mlpt.data.token_scores import Question, TokenScores
from mlpt.errors import UserError
from mlpt.storage.files import filesystem
from mlpt.storage.store import Store


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared folder of some hundred blocks of 32 tokens."""
    folder = tmp_path_factory.mktemp("prepared")
    text = "\n\n".join(f"document {n} of the river and its {n % 17} stones, {n % 5} boats" for n in range(2000))
    (folder / "text.txt").write_text(text)
    prepare(DataConfig(source=str(folder / "text.txt"), vocab_size=120, block_size=32, workers=1), str(folder / "b"))
    return str(folder / "b")


@pytest.fixture
def blocks(prepared):
    return Blocks.open(prepared)


def ask(blocks, metrics=("loss",), model="0" * 32, part_rows=100, **settings):
    asked = Question.of(blocks, model, dict.fromkeys(metrics, 0.1), settings)
    return asked.model_copy(update={"part_rows": part_rows})


def drawn(question, number):
    rows = len(question.rows_of(number))
    random = np.random.default_rng(number)
    return {name: random.gamma(1.0, 1.0, (rows, 32)).astype(np.float16) for name in question.metrics}


def write(folder, question, numbers=None):
    store = Store(str(folder))
    parts = begin(store, question)
    for number in range(question.parts) if numbers is None else numbers:
        if number not in parts:
            scores = drawn(question, number)
            parts[number] = write_part(store, question, number, scores, next(iter(scores.values())).size)
    return store, parts


@pytest.fixture
def whole(blocks, tmp_path):
    """Finished scores in several parts, two metrics."""
    question = ask(blocks, ("loss", "entropy"))
    store, parts = write(tmp_path / "scores", question)
    finish(store, question, reversed(parts.values()))
    return tmp_path / "scores"


def one_line(error):
    assert "\n" not in str(error.value)
    return True


def test_scores_come_back_by_row_in_any_order(blocks, whole):
    scores = TokenScores.open(str(whole), blocks)
    assert len(scores) == len(blocks) > 300
    for metric in ("loss", "entropy"):
        expected = np.concatenate([drawn(scores.question, part)[metric] for part in range(scores.question.parts)])
        rows = np.random.default_rng(0).permutation(len(blocks))
        found = scores.scores(rows, metric)
        assert found.dtype == np.float16
        assert np.array_equal(found, expected[rows])
    assert np.array_equal(scores.scores(rows), scores.scores(rows, "loss")), "the first metric is the default"
    assert scores.scores(np.empty(0, dtype=np.int64)).shape == (0, 32)
    with pytest.raises(IndexError):
        scores.scores(np.array([len(blocks)]))


def test_two_bytes_a_token_and_a_metric(blocks, tmp_path):
    question = ask(blocks, part_rows=2048)
    store, parts = write(tmp_path / "scores", question)
    finish(store, question, parts.values())
    scores = TokenScores.open(str(tmp_path / "scores"), blocks)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "scores").rglob("*.arrow"))
    assert on_disk == scores.manifest.bytes
    assert on_disk / scores.manifest.tokens < 2.2


def test_parts_are_mapped_not_loaded(blocks, whole):
    scores = TokenScores.open(str(whole), blocks)
    scores.scores(np.arange(3))
    (open_part,) = scores._open.values()
    assert not open_part["loss"].flags.owndata
    assert not open_part["loss"].flags.writeable
    again = pickle.loads(pickle.dumps(scores))
    assert not again._open, "another process maps the files anew"
    assert np.array_equal(again.scores(np.arange(9)), scores.scores(np.arange(9)))


def test_a_threshold_is_strict_and_cut_exactly_where_scores_are_kept(blocks, tmp_path):
    """Vector of the specification: NLL 0.0999 and 0.1 are not hard at 0.1, 0.1001 is; and every float16 by itself."""
    question = ask(blocks, part_rows=len(blocks))
    values = np.zeros((len(blocks), 32), dtype=np.float16)
    values[0, :4] = np.array([0.0999, 0.1, 0.1001, 0.0], dtype=np.float32)
    values[1:] = np.random.default_rng(0).gamma(1.0, 1.0, values[1:].shape)
    store = Store(str(tmp_path / "scores"))
    begin(store, question)
    finish(store, question, [write_part(store, question, 0, {"loss": values}, values.size)])
    scores = TokenScores.open(str(tmp_path / "scores"), blocks)
    assert scores.hard(np.array([0]))[0, :4].tolist() == [False, False, True, False]
    rows = np.arange(len(blocks))
    for threshold in (0.0, 0.1, 0.3, 1.0, 2.71828, float(values[5, 5]), 1e9):
        expected = values.astype(np.float64) > threshold
        assert np.array_equal(scores.hard(rows, threshold), expected)
        assert scores.share(threshold) == pytest.approx(expected.mean())
    with pytest.raises(UserError, match="not a number from 0 up") as error:
        scores.hard(rows, -0.5)
    assert one_line(error)


def test_a_share_of_the_tokens_becomes_a_threshold(blocks, whole):
    scores = TokenScores.open(str(whole), blocks)
    everything = np.sort(scores.scores(np.arange(len(blocks))).astype(np.float64).reshape(-1))
    for share in (0.01, 0.15, 0.5, 1.0):
        threshold = scores.threshold_of(share)
        assert scores.share(threshold) <= share
        below = everything[everything < threshold]
        if len(below):  # one stored score lower would be too many
            assert (everything > below[-1]).mean() > share or below[-1] == threshold


def test_padding_counts_for_no_share(blocks, tmp_path):
    question = ask(blocks, part_rows=len(blocks))
    values = np.zeros((len(blocks), 32), dtype=np.float16)
    values[:, :8] = 1.0  # of 16 tokens; the others are padding
    store = Store(str(tmp_path / "scores"))
    begin(store, question)
    finish(store, question, [write_part(store, question, 0, {"loss": values}, 16 * len(blocks))])
    scores = TokenScores.open(str(tmp_path / "scores"), blocks)
    assert scores.share(0.5) == 0.5
    assert scores.threshold_of(0.5) < 1.0
    assert scores.threshold_of(0.49) == 1.0


def test_too_few_hard_tokens_are_a_warning_with_the_share(blocks, tmp_path):
    question = ask(blocks, part_rows=len(blocks))
    values = np.full((len(blocks), 32), 0.01, dtype=np.float16)
    values[:4, 0] = 5.0  # 4 in several hundred rows: about one in a hundred
    store = Store(str(tmp_path / "scores"))
    begin(store, question)
    finish(store, question, [write_part(store, question, 0, {"loss": values}, values.size)])
    scores = TokenScores.open(str(tmp_path / "scores"), blocks)
    assert 100 <= len(blocks) <= 400 or 4 / len(blocks) < 0.01
    assert scores.warning(0.001) is None
    warning = scores.warning(6.0)
    assert "only 0.0000% of the tokens score above 6 (loss), 0 in a hundred rows" in warning
    assert "\n" not in warning


# ---------------------------------------------------------------- unfinished, resumed


def test_an_unfinished_folder_says_so_and_keeps_its_parts(blocks, tmp_path):
    question = ask(blocks)
    write(tmp_path / "scores", question, [0, 2])
    with pytest.raises(UserError, match="is not finished; the command that began it goes on") as error:
        TokenScores.open(str(tmp_path / "scores"))
    assert one_line(error)
    assert sorted(begin(Store(str(tmp_path / "scores")), question)) == [0, 2]


def test_a_damaged_part_is_not_committed(blocks, tmp_path):
    question = ask(blocks)
    store, _ = write(tmp_path / "scores", question)
    parts = sorted((tmp_path / "scores/parts").iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:-100])
    parts[1].write_bytes(b"")
    parts[2].write_bytes(parts[3].read_bytes())  # whole, and of other rows
    (tmp_path / "scores/parts/000009.arrow.partial").write_bytes(b"half a part")
    assert sorted(begin(store, question)) == list(range(3, question.parts))
    with pytest.raises(ValueError, match="parts of"):
        finish(store, question, begin(store, question).values())


def test_a_part_of_another_question_is_not_committed(blocks, tmp_path):
    write(tmp_path / "one", ask(blocks, model="1" * 32))
    other = ask(blocks, model="2" * 32)
    store = Store(str(tmp_path / "two"))
    begin(store, other)
    shutil.copytree(tmp_path / "one/parts", tmp_path / "two/parts")
    assert read_part(store, other, 0) is None


def test_a_kept_part_is_not_written_again(blocks, tmp_path):
    question = ask(blocks)
    write(tmp_path / "scores", question, [0, 1])
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "scores/parts").iterdir()}
    store, parts = write(tmp_path / "scores", question)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "scores/parts").iterdir()}
    assert before.items() <= after.items()
    finish(store, question, parts.values())
    TokenScores.open(str(tmp_path / "scores"), blocks)


# ---------------------------------------------------------------- refused, each in one line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "1" * 32}, "holds scores of another model"),
        ({"blocks": "another"}, "holds scores of other blocks"),
        ({"split": "dev"}, "holds scores of other blocks"),
        ({"vocabulary_sha256": "another"}, "holds scores of another vocabulary"),
        ({"settings": {"stride": 5}}, "with other metrics or settings"),
    ],
)
def test_a_folder_with_another_answer_is_not_gone_on_with(blocks, tmp_path, change, message):
    question = ask(blocks)
    write(tmp_path / "scores", question, [0])
    with pytest.raises(UserError, match=message) as error:
        begin(Store(str(tmp_path / "scores")), question.model_copy(update=change))
    assert one_line(error)


@pytest.mark.parametrize("at_uri", [False, True])
def test_a_place_of_something_else_is_left_alone(tmp_path, at_uri):
    place = "memory://places/one" if at_uri else str(tmp_path)
    Store(place).write("thesis.txt", b"years of work")
    with pytest.raises(UserError, match=r"not empty \(it holds thesis.txt\)") as error, scores_place(place):
        pass
    assert one_line(error)
    assert Store(place).names("") == ["thesis.txt"]


def test_scores_at_a_uri_are_gone_on_with_and_never_replaced(blocks):
    place = "memory://places/two"
    for numbers in ([0, 1], []):
        with scores_place(place) as store:
            assert sorted(begin(store, ask(blocks))) == ([] if numbers else [0, 1])
            for number in numbers:
                write_part(store, ask(blocks), number, drawn(ask(blocks), number), 3200)
    with pytest.raises(UserError, match="--overwrite replaces folders of this machine") as error:
        check_place(place, overwrite=True)
    assert one_line(error)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("blocks", "another", "scores other blocks than those in"),
        ("vocabulary_sha256", "another", "scores tokens of another vocabulary"),
    ],
)
def test_scores_of_other_blocks_are_refused(blocks, whole, key, value, message):
    manifest = json.loads((whole / "manifest.json").read_text())
    manifest["question"][key] = value
    (whole / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message) as error:
        TokenScores.open(str(whole), blocks)
    assert one_line(error)


def test_scores_of_another_model_are_refused_where_it_matters(blocks, whole):
    TokenScores.open(str(whole), blocks, "0" * 32)
    with pytest.raises(UserError, match="has the scores of another model") as error:
        TokenScores.open(str(whole), blocks, "1" * 32)
    assert one_line(error)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("parts/000001.arrow", cut, "it is truncated; remove the folder and question again"),
        ("parts/000001.arrow", flip, "is corrupt"),
        ("parts/000001.arrow", os.remove, "there is no such file"),
        ("manifest.json", cut, "manifest.json is damaged"),
        ("manifest.json", os.remove, "is not finished"),
    ],
)
def test_damage_is_found_when_the_folder_is_opened(blocks, whole, file, damage, message):
    damage(whole / file)
    with pytest.raises(UserError, match=message) as error:
        TokenScores.open(str(whole), blocks)
    assert one_line(error)


@pytest.mark.parametrize("name", ["manifest.json", "question.json"])
def test_a_later_format_is_named(blocks, whole, name):
    text = json.loads((whole / name).read_text())
    text.get("question", text)["format"] = 2
    (whole / name).write_text(json.dumps(text))
    read = {"manifest.json": lambda: TokenScores.open(str(whole)), "question.json": lambda: begin(store, ask(blocks))}
    store = Store(str(whole))
    with pytest.raises(UserError, match="has format 2, this mlpt reads 1") as error:
        read[name]()
    assert one_line(error)


def test_an_unknown_metric_names_those_there_are(blocks, whole):
    with pytest.raises(UserError, match="has no metric 'margin'; it has loss, entropy"):
        TokenScores.open(str(whole), blocks).scores(np.arange(2), "margin")


def test_scores_at_a_uri_are_fetched_and_checked(blocks, whole):
    uri = "memory://scores/one"
    fs, inner = filesystem(uri)
    fs.put(f"{whole}/", inner, recursive=True)
    scores = TokenScores.open(uri, blocks)
    rows = np.arange(0, len(blocks), 7)
    assert np.array_equal(scores.scores(rows), TokenScores.open(str(whole)).scores(rows))
    part = next(path for path in fs.find(inner) if path.endswith("000001.arrow"))
    fs.pipe_file(part, b"x" * fs.size(part))
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]) / "mlpt")
    with pytest.raises(UserError, match="truncated or corrupt"):
        TokenScores.open(uri, blocks).scores(rows)


# ---------------------------------------------------------------- counts


def test_token_counts_are_those_of_the_split_and_are_counted_once(prepared, blocks, monkeypatch):
    tokens = blocks.tokens(np.arange(len(blocks))).numpy()
    expected = np.bincount(tokens.reshape(-1), minlength=blocks.vocabulary.size)
    assert np.array_equal(blocks.token_counts(), expected)
    assert blocks.token_counts().sum() == len(blocks) * 32
    monkeypatch.setattr(Blocks, "_count", lambda self: pytest.fail("counted again"))
    assert np.array_equal(Blocks.open(prepared).token_counts(), expected)


def test_a_damaged_count_is_counted_anew(prepared, blocks):
    expected = blocks.token_counts()
    (kept,) = Path(prepared, "shards").glob("train-*.counts.npy")
    kept.write_bytes(kept.read_bytes()[:50])
    assert np.array_equal(Blocks.open(prepared).token_counts(), expected)
    assert np.array_equal(np.load(kept), expected), "and kept again"


def test_counts_belong_to_one_split(prepared, blocks):
    dev = Blocks.open(prepared, "dev")
    assert dev.token_counts().sum() == len(dev) * 32
    assert not np.array_equal(dev.token_counts(), blocks.token_counts())
