"""Modes of torch.compile reach it, and a model whose results its next pass overwrites trains like the plain one."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from mlpt.config import RunConfig
from mlpt.errors import UserError
from mlpt.run.build import run_rank
from mlpt.settings import load_settings, merge
from mlpt.training import compiling
from mlpt.training.group import Group
from mlpt.training.tracker import read_metrics

TINY = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.1},
    "objectives": ["mlm", "dtd"],
    "meta": {"interval": 2, "rules": {"mixture": {"rule": "uniform"}}},
    "train": {"steps": 4, "batch_size": 8, "micro_batch_size": 2, "log_every": 4, "evaluate_batches": 1},
    "report": {"tensorboard": False, "html": False, "samples": 0},
}


class Graph(nn.Module):
    """Stands for CUDA graphs where there is no GPU: all that a pass gave becomes NaN when the next one begins."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.given: list[torch.Tensor] = []
        self.fresh: set[nn.Parameter] = set()
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self.keep)

    def keep(self, parameter: nn.Parameter) -> None:
        """A first gradient is the graph's own tensor; to one that is there already, autograd adds in place."""
        if parameter in self.fresh:
            self.given.append(parameter.grad)

    def forward(self, *inputs) -> torch.Tensor:
        with torch.no_grad():
            for one in self.given:
                one.fill_(torch.nan)
        self.fresh = {one for one in self.model.parameters() if one.grad is None}
        loss = self.model(*inputs)
        self.given = [loss.detach()]  # which shares its memory
        return loss


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What torch.compile is asked for."""
    found: list[dict] = []

    def replaced(model, **how):
        found.append(how)
        return Graph(model)

    monkeypatch.setattr(torch, "compile", replaced)
    monkeypatch.setattr(compiling, "why_not_compile", lambda device: None)
    return found


def run(blocks, folder, told=(), **train):
    (folder / "checkpoints").mkdir(parents=True)
    torch.set_num_threads(1)
    config = load_settings(RunConfig, merge(TINY, {"train": train}))
    run_rank(config, blocks, folder, Group(), tell=lambda event: told.append(event) if told != () else None)
    return [{key: line.get(key) for key in ("loss", "held_out")} for line in read_metrics(folder)]


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_a_model_whose_results_are_overwritten_trains_like_the_plain_one(small_blocks, tmp_path, asked, mode):
    """Four micro-batches a step, whose gradients are added up, and losses that are read four steps later."""
    plain = run(small_blocks, tmp_path / "plain", fixed_shapes=True)
    assert asked == []
    told: list[dict] = []
    ours = run(small_blocks, tmp_path / "ours", told, compile=True, compile_mode=mode)
    assert ours == plain
    assert [(how["mode"], how["dynamic"]) for how in asked] == [(mode, False)]
    assert any("records no CUDA graphs" in event["text"] for event in told if event["event"] == "warning")


def test_the_stand_in_for_graphs_would_notice(small_blocks, tmp_path, asked, monkeypatch):
    monkeypatch.setattr(compiling, "Replayed", lambda model: model)
    monkeypatch.setattr(compiling, "_keeping_gradients", nullcontext)
    with pytest.raises(UserError, match="not finite"):
        run(small_blocks, tmp_path / "ours", compile=True, compile_mode="reduce-overhead")


@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
def test_other_modes_are_torchs_own(asked, mode):
    model = nn.Linear(2, 2)
    made = compiling.compiled(model, True, mode=mode)
    assert isinstance(made, Graph)
    assert asked[0]["mode"] == mode


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"compile_mode": "reduce-overhead"}, "set train.compile=true"),
        ({"compile": True, "compile_mode": "max-autotune", "fixed_shapes": False}, "leave fixed_shapes out"),
        ({"compile": True, "compile_mode": "fast"}, "compile_mode"),
    ],
)
def test_what_cannot_work_is_refused(train, says):
    with pytest.raises(UserError, match=says) as error:
        load_settings(RunConfig, merge(TINY, {"train": train}))
    assert "\n" not in str(error.value)
