"""The components of docs/examples, named by module:Class, run and resume like the built-in ones."""

from pathlib import Path

import pytest
import running
import torch

from mlpt.config import RunConfig
from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.objectives import make_objectives
from mlpt.settings import load_settings
from mlpt.training.tracker import read_metrics

VOCABULARY = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4)
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SETTINGS = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.2},
    "objectives": {"mlm": {}, "spans": {"type": "span_masking:SpanMasking", "length": 2}, "mlm40": {"type": "mlm"}},
    "meta": {
        "interval": 4,
        "lag": 2,
        "rules": {
            "mixture": {"rule": "hypergradient"},
            "dropout": {"rule": "dropout_schedule:DropoutSchedule", "first": 0.2, "steps": 8},
        },
        "lookahead": {"engine": "numeric_engine:Numeric", "start": 4},
        "target": "mlm",
    },
    "train": {"steps": 12, "batch_size": 8, "log_every": 1, "evaluate_batches": 2, "checkpoint_every": 5, "keep": 9},
    "report": {"tensorboard": False},
}


@pytest.fixture(autouse=True)
def examples_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def run(blocks, folder, settings=SETTINGS):
    summary = running.run(load_settings(RunConfig, settings), blocks, folder)
    return summary, [line for line in read_metrics(folder) if "loss" in line or "meta" in line]


def test_they_train_together_and_resume_bit_for_bit(small_blocks, tmp_path):
    summary, lines = run(small_blocks, tmp_path / "whole")
    assert summary["held_out"].keys() == {"mlm", "spans", "mlm40"}
    dropouts = [line["meta"]["dropout"] for line in lines if "meta" in line]
    assert dropouts == pytest.approx([0.2, 0.1, 0.0])  # at steps 0, 4 and 8
    found = [line["meta"]["hypergradient"] for line in lines if "hypergradient" in line.get("meta", {})]
    assert found[0].keys() == {"mlm", "spans", "mlm40"}

    cut = tmp_path / "cut"
    run(small_blocks, cut)
    for step in (10, 12):
        for file in (cut / "checkpoints").glob(f"step_*{step}"):
            (file / "COMMITTED").unlink()
    again, repeated = run(small_blocks, cut)
    assert again["resumed_at"] == 5
    assert again["held_out"] == summary["held_out"]
    assert again["mixture"] == summary["mixture"]
    assert [line["loss"] for line in repeated if "loss" in line] == [line["loss"] for line in lines if "loss" in line]


def test_the_numeric_engine_agrees_with_higher(small_blocks, tmp_path):
    _, lines = run(small_blocks, tmp_path / "numeric")
    exact = {**SETTINGS, "meta": {**SETTINGS["meta"], "lookahead": {"engine": "higher", "start": 4}}}
    _, other = run(small_blocks, tmp_path / "higher", exact)
    reports = [line["meta"] for line in other if "hypergradient" in line.get("meta", {})]
    ours = next(line["meta"] for line in lines if "hypergradient" in line.get("meta", {}))["hypergradient"]
    scale = max(abs(one) for one in reports[0]["hypergradient"].values())
    assert ours == pytest.approx(reports[0]["hypergradient"], abs=0.05 * scale)


def test_spans_hide_about_their_share(small_blocks):
    objective = make_objectives({"spans": {"type": "span_masking:SpanMasking", "length": 4}}, VOCABULARY)["spans"]
    tokens = torch.randint(5, 100, (64, 128), generator=torch.Generator().manual_seed(0))
    inputs = objective.corrupt(Batch.of(tokens), torch.Generator().manual_seed(1))
    assert len(inputs.positions) / tokens.numel() == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": {"spans": {"type": "span_masking:Nothing"}}}, "span_masking has no Nothing"),
        ({"objectives": {"spans": {"type": "no_such_module:Spans"}}}, "cannot import no_such_module"),
        ({"objectives": {"spans": {"type": "span_masking:SpanMasking", "lenght": 3}}}, "lenght"),
        ({"objectives": {"spans": {"type": "dropout_schedule:DropoutSchedule"}}}, "is not a subclass"),
        ({"meta": {"rules": {"mixture": "uniform", "dropout": "uniform"}}}, "no rule here learns a part 'dropout'"),
        ({"meta": {"lookahead": {"engine": "highest"}}}, "did you mean 'higher'"),
    ],
)
def test_what_is_wrong_with_a_name_is_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        load_settings(RunConfig, settings)
    assert "\n" not in str(error.value)
