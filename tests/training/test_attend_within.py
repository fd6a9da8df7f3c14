"""Runs whose documents don't see each other: every part of them, and what is made of their models, keeps to it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpt.config import RunConfig
from mlpt.data.blocks import Blocks
from mlpt.errors import UserError
from mlpt.models.encoder import load_encoder
from mlpt.objectives.mlm import MaskedLM
from mlpt.questioning.config import QuestionConfig
from mlpt.questioning.question import question
from mlpt.questioning.scoring import score_tokens
from mlpt.run.build import run_rank
from mlpt.settings import load_settings, merge
from mlpt.sparsity.commands import evaluate_files
from mlpt.training.group import Group
from mlpt.training.tracker import read_metrics

TINY = {
    "model": {"architecture": "modernbert", "hidden_size": 32, "layers": 1, "heads": 2, "attend_within": "document"},
    "objectives": {"mlm": {}, "clm": {}},
    "meta": {
        "interval": 1,
        "lag": 0,
        "rules": {"mixture": {"rule": "hypergradient"}},
        "lookahead": {"engine": "one_step", "start": 1},
        "target": "mlm",
    },
    "train": {"steps": 2, "batch_size": 8, "log_every": 1, "evaluate_batches": 1, "evaluate_every": 2},
    "report": {"tensorboard": False, "html": False, "samples": 1},
}


class Forgetful(MaskedLM):
    """An objective of a user who does not know of documents."""

    def corrupt(self, batch, generator):
        return replace(super().corrupt(batch, generator), documents=None)


def run(blocks, folder, **changes):
    (folder / "checkpoints").mkdir(parents=True)
    torch.set_num_threads(1)
    run_rank(load_settings(RunConfig, merge(TINY, changes)), blocks, folder, Group())
    return folder


def lines(folder, key):
    return [line[key] for line in read_metrics(folder) if key in line]


@pytest.fixture(scope="module")
def runs(small_blocks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        within: run(small_blocks, folder / within, model={"attend_within": within}) for within in ("block", "document")
    }


def test_training_and_the_look_ahead_and_held_out_losses_all_change(runs):
    block, document = runs["block"], runs["document"]
    for key in ("loss", "dev", "mixture"):
        assert lines(document, key)
        assert lines(document, key) != lines(block, key)


def test_a_saved_model_remembers_and_is_evaluated_and_questioned_so(runs, small_blocks, tmp_path):
    model = runs["document"] / "model"
    assert "attend_within" not in json.loads((runs["block"] / "model" / "config.json").read_text())
    encoder = load_encoder(str(model), {}).eval()
    blocks = Blocks.open(small_blocks, "dev", tells_documents=True)
    rows = np.arange(len(blocks))
    asked = QuestionConfig(model=str(model), blocks=small_blocks, split="dev", out=str(tmp_path / "scores"))
    scores = question(asked).scores(rows, "loss")
    tokens = blocks.tokens(rows)
    expected, whole = (
        score_tokens(encoder, tokens, rows, blocks.vocabulary, asked, documents)["loss"]
        for documents in (blocks.documents_in(rows), None)
    )
    assert np.array_equal(scores, expected)
    assert not np.array_equal(scores, whole)

    found = evaluate_files(str(model), small_blocks, split="dev", batches=2)["mlm_loss"]
    config = json.loads((model / "config.json").read_text())
    del config["attend_within"]
    (model / "config.json").write_text(json.dumps(config))
    assert evaluate_files(str(model), small_blocks, split="dev", batches=2)["mlm_loss"] != found


def test_an_objective_that_loses_the_documents_is_refused(small_blocks, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    forgetful = {"mlm": None, "clm": None, "mine": {"type": f"{Path(__file__).stem}:Forgetful"}}
    meta = {"rules": {"mixture": {"rule": "uniform"}}, "target": "mine"}
    with pytest.raises(UserError, match=r"'mine' does not say which document .* documents=batch\.documents") as error:
        run(small_blocks, tmp_path / "run", objectives=forgetful, meta=meta, report={"samples": 0})
    assert "\n" not in str(error.value)
