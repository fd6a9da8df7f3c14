"""Fine-tuning on two ranks that share each step, on one task and on many: the losses, scores and weights of one."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from tiny_tasks import own_tasks, saved_encoder

from mlpt.downstream.config import FinetuneConfig, cells
from mlpt.downstream.finetune import run_cell
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.run import run_multitask
from mlpt.downstream.work import sum_gradients
from mlpt.errors import UserError
from mlpt.settings import load_settings
from mlpt.training.group import Group
from mlpt.training.loop import Loop
from mlpt.training.tracker import read_metrics

COMMON = {
    "batch_size": 10,
    "micro_batch_size": 5,
    "num_workers": 2,
    "max_steps": 8,  # 64 rows: the last batch of the first epoch has 4, which is one micro-batch for two ranks
    "evaluate_every": 4,
    "checkpoint_every": 3,
    "keep_model": "last",
}
EXACT = {"precision": "float32"}  # of scores that rank rows
KINDS = {
    "one_task": {"tasks": ["mood"], "seeds": [1], "learning_rates": [3e-3], "max_length": 16},
    "uncertainty": {"sampler": {"rule": "mt_uncertainty", "rescore_every": 2}, "scoring": EXACT},
    "published": {"published": True, "sampler": {"rule": "mt_uncertainty"}},
    "mometas": {"sampler": {"rule": "policy", "interval": 3, "learner": {"rule": "mometas"}}},
}
KILLED_AT = 5


def quiet(text: str) -> None:
    pass


def fine_tune(kind: str, folder: Path, name: str, group: Group | None = None) -> None:
    settings = {"model": str(folder / "model"), "source": json.loads((folder / "source.json").read_text()), **COMMON}
    settings |= {"out": str(folder / name / kind), **KINDS[kind]}
    if kind == "one_task":
        (cell,) = cells(load_settings(FinetuneConfig, settings))
        run_cell(cell, say=quiet, group=group)
    else:
        shared = {"tasks": ["mood", "same", "grade"], "conditional": {"max_length": 16}, "optimizer": {"lr": 1e-3}}
        run_multitask(load_settings(MultitaskConfig, shared | settings), quiet, group=group)


def two_ranks(group: Group, folder: Path) -> None:
    """Every kind whole, and once killed in the middle and gone on with."""
    linear = torch.nn.Linear(2, 1, bias=False)
    unreached = torch.nn.Parameter(torch.zeros(3))
    if group.leads:  # the other rank has no loss of its own
        linear(torch.tensor([[1.0, 2.0]])).sum().backward()
    sum_gradients([*linear.parameters(), unreached], group)
    assert linear.weight.grad.tolist() == [[1.0, 2.0]]
    assert unreached.grad is None
    train_step = Loop.train_step

    def killed(loop: Loop) -> None:
        if loop.step == KILLED_AT:
            loop.checkpoints.wait()
            raise KeyboardInterrupt
        train_step(loop)

    for kind in KINDS:
        fine_tune(kind, folder, "two", group)
        Loop.train_step = killed
        with pytest.raises(KeyboardInterrupt):
            fine_tune(kind, folder, "killed", group)
        Loop.train_step = train_step
        fine_tune(kind, folder, "killed", group)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The results of one rank, of two ranks, and of two that were killed."""
    folder = tmp_path_factory.mktemp("ranks")
    saved_encoder(folder / "model")
    (folder / "source.json").write_text(json.dumps(own_tasks(folder)))
    run_ranks(two_ranks, folder)
    for kind in KINDS:
        fine_tune(kind, folder, "one")
    return folder


def place(folder: Path, name: str, kind: str) -> Path:
    return folder / name / kind / ("mood/lr0.003-seed1" if kind == "one_task" else "")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_losses_scores_and_weights_of_one(folder, kind):
    one, two = place(folder, "one", kind), place(folder, "two", kind)
    lines = [read_metrics(run) for run in (one, two)]
    assert [line.get("dev") for line in lines[0]] == [line.get("dev") for line in lines[1]]
    assert [line.get("rows") for line in lines[0]] == [line.get("rows") for line in lines[1]]
    losses = [[line["loss"] for line in of_run if "loss" in line] for of_run in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 1
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_that_were_killed_go_on_bit_for_bit(folder, kind):
    whole, killed = place(folder, "two", kind), place(folder, "killed", kind)
    assert read_metrics(whole) == read_metrics(killed)
    assert all(torch.equal(weight, weights(killed)[name]) for name, weight in weights(whole).items())


@pytest.mark.parametrize(
    "settings", [{"num_workers": 2}, {"num_workers": 3, "micro_batch_size": 5}], ids=["whole", "halves"]
)
def test_more_workers_than_micro_batches_are_refused(settings):
    read = partial(load_settings, FinetuneConfig)
    with pytest.raises(UserError, match="need as many micro-batches a step; set micro_batch_size to at most"):
        read({"model": "m", "tasks": ["sst2"], "batch_size": 10, **settings})
