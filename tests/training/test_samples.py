"""The texts that a run keeps for people: what they say is true of the model, and keeping them changes nothing."""

import json

import numpy as np
import pytest
import running
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlpt.config import RunConfig
from mlpt.data.batch import Batch
from mlpt.data.blocks import Blocks
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives import make_objectives
from mlpt.randomness import torch_generator
from mlpt.reporting.samples import read_sample
from mlpt.settings import load_settings, merge
from mlpt.training.tracker import read_metrics

TINY = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.1, "architecture": "bert"},
    "objectives": {"mlm": {}, "cse": {}, "teacher_made": {"teacher": "masker"}},
    "meta": {
        "interval": 2,
        "lag": 1,
        "target": "mlm",
        "rules": {"mixture": {"rule": "uniform"}, "teacher": {"rule": "teacher_hard", "optimizer": {"lr": 1.0}}},
    },
    "train": {"steps": 8, "batch_size": 4, "evaluate_batches": 1, "log_every": 1, "optimizer": {"lr": 5e-3}},
    "report": {"tensorboard": False, "samples": 3},
}


def run(blocks, folder, **changes):
    running.run(load_settings(RunConfig, merge(TINY, changes)), blocks, folder)
    return folder


@pytest.fixture(scope="module")
def kept(small_blocks, tmp_path_factory):
    return run(small_blocks, tmp_path_factory.mktemp("samples") / "run")


def sample(folder, step):
    return read_sample((folder / f"samples/step_{step:08d}.json").read_bytes())


def ids(pieces, tokenizer):
    """Token ids of WordPiece pieces: one without a space before it goes on with a word."""
    known = tokenizer.get_vocab()
    return torch.tensor([known[one[1:] if one.startswith(" ") else f"##{one}"] for one in pieces])


def test_texts_are_kept_at_the_first_and_the_last_step_and_evenly_between(kept):
    assert sorted(path.name for path in (kept / "samples").iterdir()) == [f"step_{step:08d}.json" for step in (0, 4, 8)]
    assert sample(kept, 4).step == 4


def test_keeping_texts_changes_nothing_of_the_run(kept, small_blocks, tmp_path):
    without = run(small_blocks, tmp_path / "without", report={"samples": 0})
    assert not (without / "samples").exists()
    told = [[line.get("loss") for line in read_metrics(folder)] for folder in (kept, without)]
    assert told[0] == told[1]
    ours, theirs = (load_file(folder / "model/model.safetensors") for folder in (kept, without))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_losses_are_those_of_the_model_that_the_run_left(kept):
    """With transformers' own class, from the words alone."""
    tokenizer = AutoTokenizer.from_pretrained(kept / "model")
    model = AutoModelForMaskedLM.from_pretrained(kept / "model").eval()
    (row, *_) = sample(kept, 8).objectives["mlm"]["rows"]
    text, made = ids(row["text"], tokenizer), ids(row["made"], tokenizer)
    assert len(text) == 32
    with torch.no_grad():
        losses = F.cross_entropy(model(input_ids=made[None]).logits[0], text, reduction="none")
    predicted = [at for at, loss in enumerate(row["losses"]) if loss is not None]
    assert 1 <= len(predicted) <= 12
    assert [row["losses"][at] for at in predicted] == pytest.approx(losses[predicted].tolist(), abs=0.006)
    for at, kind in enumerate(row["kinds"]):
        expected = "=" if made[at] == text[at] else "m" if made[at] == tokenizer.mask_token_id else "r"
        assert kind == expected
        assert row["wanted"][at] == (row["text"][at] if at in predicted else None)


def test_every_ordinary_token_has_a_hardness(kept):
    tokenizer = AutoTokenizer.from_pretrained(kept / "model")
    model = AutoModelForMaskedLM.from_pretrained(kept / "model").eval()
    row = sample(kept, 8).hardness[0]
    text = ids(row["text"], tokenizer)
    special = torch.isin(text, torch.tensor(tokenizer.all_special_ids))
    assert [loss is None for loss in row["losses"]] == special.tolist()
    turn = (torch.arange(len(text)) % 7 == 3) & ~special
    with torch.no_grad():
        logits = model(input_ids=text.masked_fill(turn, tokenizer.mask_token_id)[None]).logits[0]
    expected = F.cross_entropy(logits, text, reduction="none")[turn]
    assert np.array(row["losses"], dtype=float)[turn.numpy()] == pytest.approx(expected.numpy(), abs=0.006)


def test_the_same_texts_show_what_the_teacher_has_learned(kept):
    first, last = (sample(kept, step).objectives["teacher_made"] for step in (0, 8))
    assert first["kind"] == "teacher"
    assert [row["text"] for row in first["rows"]] == [row["text"] for row in last["rows"]]
    assert [row["kinds"] for row in first["rows"]] != [row["kinds"] for row in last["rows"]]
    assert "cse" not in sample(kept, 8).objectives  # it predicts no tokens


def test_a_teacher_of_soft_batches_is_shown_by_hard_ones():
    vocabulary = Vocabulary(size=50, pad=0, unk=1, cls=2, sep=3, mask=4)
    network = {"hidden_size": 8, "layers": 1, "heads": 2, "intermediate_size": 16, "positions": 12}
    made = make_objectives({"teacher_made": {"samples": "soft", "network": network}}, vocabulary)["teacher_made"]
    tokens = torch.randint(5, 50, (2, 12), generator=torch_generator(0, "text"))
    shown = made.example(Batch.of(tokens), torch_generator(0, "noise"))
    assert shown.input_ids.shape == tokens.shape
    assert not shown.input_ids.is_floating_point()
    assert len(shown.targets) == 24


def test_rows_are_those_of_the_split(kept, small_blocks):
    dev = Blocks.open(small_blocks, "dev")
    tokenizer = dev.tokenizer()
    texts = {tuple(row) for row in dev.tokens(np.arange(len(dev))).tolist()}
    for row in sample(kept, 0).objectives["mlm"]["rows"]:
        assert tuple(ids(row["text"], tokenizer).tolist()) in texts


def test_a_damaged_file_is_passed_over():
    assert read_sample(b"{torn") is None
    assert read_sample(None) is None
    assert read_sample(json.dumps({"step": 1}).encode()) is None
