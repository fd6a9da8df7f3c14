"""Questioning a split: what a kill leaves, who is refused, the published file in and out, the commands."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.data.blocks import Blocks
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.score_parts import scores_place
from mlpt.data.token_scores import TokenScores
from mlpt.errors import UserError
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder, load_encoder
from mlpt.questioning import question as asking
from mlpt.questioning.config import QuestionConfig
from mlpt.questioning.published import export_positions, import_positions
from mlpt.questioning.question import question
from mlpt.questioning.scoring import model_digest, score_tokens
from mlpt.sparsity.artefacts import fit, load_masks, zero_pruned
from mlpt.sparsity.commands import prune

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small_blocks(tmp_path_factory):
    """Prepared blocks as other tests have them, and fewer: every test here scores them all."""
    folder = str(tmp_path_factory.mktemp("blocks") / "docs")
    prepare(DataConfig(max_bytes=100_000, vocab_size=512, block_size=32, dev_share=0.1, workers=1), folder)
    return folder


@pytest.fixture(scope="module")
def model(small_blocks, tmp_path_factory):
    """A saved model for the small blocks, with their tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    blocks = Blocks.open(small_blocks)
    config = ModelConfig(hidden_size=32, layers=1, heads=2)
    build_encoder(config, blocks.vocabulary, {}, blocks.block_size, seed=0).save(folder, blocks.tokenizer())
    return str(folder)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Several parts of few blocks."""
    monkeypatch.setattr("mlpt.data.token_scores._SMALLEST_PART", 1 << 12)


@pytest.fixture
def config(model, small_blocks, tmp_path):
    return QuestionConfig(model=model, blocks=small_blocks, out=str(tmp_path / "scores"))


def test_every_token_of_the_split_is_scored(config, small_blocks):
    seen = []
    scores = question(config, progress=lambda *counts: seen.append(counts))
    blocks = Blocks.open(small_blocks)
    assert len(scores) == len(blocks)
    assert scores.question.parts > 4
    assert seen[0] == (0, 0, len(blocks))
    assert seen[-1] == (len(blocks), len(blocks), len(blocks))
    rows = np.array([0, 200, len(blocks) - 1])
    encoder = load_encoder(config.model, {})
    expected = score_tokens(encoder, blocks.tokens(rows), rows, blocks.vocabulary, config)["loss"]
    np.testing.assert_allclose(scores.scores(rows).astype(float), expected.astype(float), rtol=2e-3, atol=2e-4)
    assert scores.question.model == model_digest(encoder)
    assert TokenScores.open(config.out, blocks, model_digest(encoder)).manifest == scores.manifest


def test_a_model_answers_under_the_masks_beside_it_unless_it_is_to_be_dense(config, small_blocks, tmp_path):
    masked = str(shutil.copytree(config.model, tmp_path / "masked"))
    prune(masked, "magnitude", 0.7, masked)  # embeddings too, to which the decoder is tied
    blocks, rows = Blocks.open(small_blocks), np.arange(64)
    whole = config.model_copy(update={"model": masked})
    scores = question(whole)
    encoder = load_encoder(masked, {})
    dense = score_tokens(encoder, blocks.tokens(rows), rows, blocks.vocabulary, config)["loss"]
    zero_pruned(encoder, fit(load_masks(masked), encoder))
    expected = score_tokens(encoder, blocks.tokens(rows), rows, blocks.vocabulary, config)["loss"]
    close = {"rtol": 2e-3, "atol": 2e-3}
    np.testing.assert_allclose(scores.scores(rows).astype(float), expected.astype(float), **close)
    assert not np.allclose(dense.astype(float), expected.astype(float), **close)
    assert scores.question.model == model_digest(encoder)
    as_dense = whole.model_copy(update={"dense": True})
    with pytest.raises(UserError, match="model"):
        question(as_dense)
    found = question(as_dense.model_copy(update={"out": str(tmp_path / "dense")})).scores(rows)
    np.testing.assert_allclose(found.astype(float), dense.astype(float), **close)

    def elsewhere(task, waiting):  # as another process makes the model
        return (asking.score_part(task, task.encoder("cpu"), number) for number in waiting)

    again = question(whole.model_copy(update={"out": str(tmp_path / "elsewhere")}), elsewhere)
    np.testing.assert_array_equal(again.scores(rows), scores.scores(rows))


def test_another_split_has_scores_of_its_own(config, small_blocks):
    scores = question(config.model_copy(update={"split": "dev"}))
    assert len(scores) == len(Blocks.open(small_blocks, "dev"))
    with pytest.raises(UserError, match="holds scores of other blocks"):
        question(config)


class StoppedError(Exception):
    """Stands for a process that ends here."""


def test_a_stopped_questioning_goes_on_without_scoring_a_block_twice(config, monkeypatch):
    scored: list[int] = []
    plain = score_tokens

    def counting(encoder, tokens, rows, *more):
        if len(scored) >= 5 and not resumed:
            raise StoppedError
        scored.extend(rows[:1].tolist())
        return plain(encoder, tokens, rows, *more)

    monkeypatch.setattr(asking, "score_tokens", counting)
    resumed = False
    with pytest.raises(StoppedError):
        question(config)
    committed = {path.name for path in Path(config.out, "parts").iterdir()}
    assert len(committed) == 5
    with pytest.raises(UserError, match="is not finished"):
        TokenScores.open(config.out)
    resumed, seen = True, []
    scores = question(config, progress=lambda *counts: seen.append(counts))
    assert len(scored) == len(set(scored)) == scores.question.parts
    assert seen[0][0] == 0
    assert seen[0][1] == 5 * scores.question.part_rows, "progress counts what was there"
    whole = question(config.model_copy(update={"out": config.out + "-whole"}))
    assert [part.entry.sha256 for part in scores.manifest.parts] == [part.entry.sha256 for part in whole.manifest.parts]
    again = question(config)
    assert len(scored) == 2 * scores.question.parts, "the other folder's, and none for the third call"
    assert again.manifest == scores.manifest


def test_where_parts_cannot_be_written_all_stays_and_can_be_gone_on_with(config, monkeypatch):
    """Somebody has moved the first parts aside and left a file in their place; nothing of it is cleared away."""
    parts, aside = Path(config.out, "parts"), Path(config.out, "aside")
    scored: list[int] = []
    plain = score_tokens

    def counting(encoder, tokens, rows, *more):
        scored.extend(rows[:1].tolist())
        if len(scored) == 3:
            parts.rename(aside)
            parts.write_text("in the way")
        return plain(encoder, tokens, rows, *more)

    monkeypatch.setattr(asking, "score_tokens", counting)
    with pytest.raises(UserError, match=r"parts/.*; check the folder$"):
        question(config)
    parts.unlink()
    aside.rename(parts)
    assert len(list(parts.iterdir())) == 2
    scores = question(config)
    assert len(scored) == scores.question.parts + 1


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(config, tmp_path):
    """SIGKILL between two parts, or within one: what is committed stays, and is not written again."""
    script = (
        "import mlpt.data.token_scores as t; t._SMALLEST_PART = 1 << 12\n"
        "import sys; from mlpt.cli import main; sys.argv = ['mlpt', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", script, "question", config.model, config.blocks, "--out", config.out]
    # One thread and one block a pass: slow enough to be met half-way.
    process = subprocess.Popen([*command, "batch_tokens=32"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    parts = Path(config.out) / "parts"
    while process.poll() is None and len(list(parts.glob("*.arrow")) if parts.is_dir() else []) < 3:
        time.sleep(0.01)  # a condition with the process's end as its bound
    process.kill()
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.arrow")}
    assert len(before) >= 3
    scores = question(config)
    after = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.arrow")}
    assert before.items() <= after.items()
    assert len(after) == scores.question.parts


def test_the_scores_may_lie_at_a_uri(config):
    scores = question(config.model_copy(update={"out": "memory://questions/one"}))
    here = question(config)
    rows = np.arange(0, len(scores), 50)
    assert np.array_equal(scores.scores(rows), here.scores(rows))


def test_two_processes_do_not_write_into_one_folder(config):
    for _ in range(2):  # new, then half-way
        with scores_place(config.out) as store:
            store.write("question.json", b"{}")
            store.write("parts/000000.arrow", b"a part")
            with pytest.raises(UserError, match="another process is writing to") as error:
                question(config)
            assert "\n" not in str(error.value)
    assert [path.name for path in Path(config.out).parent.iterdir()] == ["scores"]


def test_a_task_sent_elsewhere_has_the_same_model(config, small_blocks):
    """As Ray sends it: pickled, with the weights as arrays."""
    sent = []

    def run(task, waiting):
        there = pickle.loads(pickle.dumps(task))
        encoder = there.encoder("cpu")
        sent.append(model_digest(encoder))
        yield from (asking.score_part(there, encoder, number) for number in reversed(waiting))

    remote = question(config, run)
    here = question(config.model_copy(update={"out": config.out + "-here"}))
    assert sent == [here.question.model]
    assert [part.entry.sha256 for part in remote.manifest.parts] == [part.entry.sha256 for part in here.manifest.parts]


# ---------------------------------------------------------------- refused, each in one line


def bert(**more):
    return BertConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        **more,
    )


@pytest.mark.parametrize("kind", [BertModel, BertForSequenceClassification])
def test_a_model_without_a_language_head_is_refused(config, kind, tmp_path):
    kind(bert()).save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match="has no trained language-modelling head") as error:
        question(config.model_copy(update={"model": str(tmp_path / "headless")}))
    assert "\n" not in str(error.value)
    assert not Path(config.out).exists()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "modernbert", "distilbert", "albert"])
def test_a_model_with_its_head_is_never_taken_for_one_without(architecture, small_blocks, tmp_path):
    vocabulary = Blocks.open(small_blocks).vocabulary
    options = {"embedding_size": 32} if architecture in ("electra", "albert") else {}
    config = ModelConfig(architecture=architecture, hidden_size=32, layers=1, heads=2, options=options)
    build_encoder(config, vocabulary, {}, 32, seed=0).save(tmp_path)
    assert load_encoder(tmp_path, {}, complete=True)


def test_a_model_of_another_vocabulary_is_refused(config, model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    one, two = [word for word in words if word.isalpha()][:2]
    words[one], words[two] = words[two], words[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="does not match the blocks") as error:
        question(config.model_copy(update={"model": str(other)}))
    assert "\n" not in str(error.value)


def test_a_model_that_learned_on_is_another_model(config, model, tmp_path):
    question(config)
    encoder = load_encoder(model, {})
    with torch.no_grad():
        next(encoder.parameters()).add_(1e-3)
    encoder.save(tmp_path / "later")
    with pytest.raises(UserError, match="holds scores of another model"):
        question(config.model_copy(update={"model": str(tmp_path / "later")}))


def test_a_file_in_the_place_of_the_folder_is_one_line(config):
    Path(config.out).write_text("a file")
    with pytest.raises(UserError, match="is a file; name a folder"):
        question(config)


# ---------------------------------------------------------------- the published file


def positions_of(scores, rows, threshold):
    return [np.flatnonzero(row) for row in scores.hard(rows, threshold)]


@pytest.mark.parametrize("single", ["array", "published"])
def test_scores_go_out_as_the_published_file_and_come_back(config, small_blocks, tmp_path, single):
    scores = question(config.model_copy(update={"metrics": ("random",)}))
    rows = np.arange(len(scores))
    threshold = 0.95  # of 32 tokens: often none, one or two
    hard = positions_of(scores, rows, threshold)
    file = tmp_path / "token_masks_merge.pkl"
    assert export_positions(scores, file, threshold, single=single) == sum(map(len, hard))
    published = pickle.loads(file.read_bytes())
    assert list(published) == rows.tolist()
    assert {len(one) for one in hard} >= {0, 1, 2}
    for row, positions in enumerate(hard):
        found = published[row]
        assert found.dtype == np.int64
        assert found.shape == (() if single == "published" and len(positions) == 1 else (len(positions),))
        assert np.array_equal(found.reshape(-1), positions)
    blocks = Blocks.open(small_blocks)
    imported = import_positions([file], blocks, str(tmp_path / "imported"))
    assert all(np.array_equal(a, b) for a, b in zip(positions_of(imported, rows, None), hard, strict=True))
    assert imported.question.model is None


def pickled(tmp_path, value, name="masks.pkl"):
    (tmp_path / name).write_bytes(pickle.dumps(value))
    return tmp_path / name


def test_each_kind_of_entry_becomes_its_hard_tokens(small_blocks, tmp_path):
    """The left column of table A2: several, one squeezed, none, a block that the file lacks."""
    blocks = Blocks.open(small_blocks)
    found = {0: np.array([2, 5]), 1: np.array(7), 2: np.array([], dtype=np.int64), 4: np.array([31])}
    scores = import_positions([pickled(tmp_path, found)], blocks, str(tmp_path / "scores"))
    hard = positions_of(scores, np.arange(6), None)
    assert [one.tolist() for one in hard] == [[2, 5], [7], [], [], [31], []]


def test_positions_beyond_a_block_are_refused_or_dropped(small_blocks, tmp_path):
    blocks = Blocks.open(small_blocks)
    file = pickled(tmp_path, {0: np.array([2, 32]), 1: np.array([3, 4]), 2: np.array([-1, 5])})
    with pytest.raises(UserError, match=r"block 0 are 2 to 32, and it has 32 tokens") as error:
        import_positions([file], blocks, str(tmp_path / "one"))
    assert "\n" not in str(error.value)
    scores = import_positions([file], blocks, str(tmp_path / "one"), beyond="drop")
    assert [one.tolist() for one in positions_of(scores, np.arange(3), None)] == [[], [3, 4], []]


def test_a_file_of_more_blocks_is_of_other_blocks(small_blocks, tmp_path):
    file = pickled(tmp_path, {10**6: np.array([2, 3])})
    with pytest.raises(UserError, match="it is of other blocks") as error:
        import_positions([file], Blocks.open(small_blocks), str(tmp_path / "scores"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "scores").exists()


# ---------------------------------------------------------------- the commands


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_commands_question_show_export_and_import(config, tmp_path):
    done = run("question", config.model, config.blocks, "--out", config.out, "metrics=loss,random")
    assert done.exit_code == 0, done.output
    assert "tokens are hard (above 0.1)" in done.output
    assert f"random: {TokenScores.open(config.out).share(metric='random'):.2%} of" in done.output
    shown = run("hard-tokens", "show", config.out, "--metric", "loss", "--threshold", "60000")
    assert "warning: only 0.0000% of the tokens score above 60000 (loss)" in shown.output
    file = tmp_path / "masks.pkl"
    assert run("hard-tokens", "export", config.out, file, "--metric", "random").exit_code == 0
    done = run("hard-tokens", "import", file, "--blocks", config.blocks, "--out", tmp_path / "imported")
    assert done.exit_code == 0, done.output
    random = TokenScores.open(config.out).share(metric="random")
    assert TokenScores.open(str(tmp_path / "imported")).share() == random


def test_a_wrong_setting_of_the_command_is_one_line(config):
    done = run("question", config.model, config.blocks, "--out", config.out, "metric=loss")
    assert isinstance(done.exception, UserError)
    assert "unknown setting 'question.metric'; did you mean 'question.metrics'?" in str(done.exception)
