"""Bits that change by themselves are noticed before the optimiser sees them, and between ranks at every checkpoint."""

import json
import random
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from mlpt.config import RunConfig
from mlpt.errors import UserError
from mlpt.run.build import run_rank
from mlpt.settings import load_settings
from mlpt.training.group import Group
from mlpt.training.loop import Loop
from mlpt.training.tracker import read_metrics

FLIPS = 100
VALUES = {
    "model": {"hidden_size": 32, "layers": 2, "heads": 2, "dropout": 0.1},
    "objectives": {"mlm": {"probability": 0.5}},  # so that no row goes without a prediction
    "meta": {"rules": {"mixture": {"rule": "uniform"}}},
    "train": {"steps": FLIPS + 1, "batch_size": 4, "log_every": 1, "evaluate_batches": 1, "checkpoint_every": 1000},
    "runtime": {"replay_every": 1},
    "report": {"tensorboard": False},
}


def flip(tensor: torch.Tensor, place: int, bit: int) -> None:
    """Change one bit of a float32 tensor, in place."""
    words = tensor.detach().view(-1).view(torch.int32)
    words[place % len(words)] ^= -(2**31) if bit == 31 else 1 << bit


def train(blocks: str, folder: Path, values: dict = VALUES, **keywords) -> list[dict]:
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    run_rank(load_settings(RunConfig, values), blocks, folder, Group(), **keywords)
    return [
        {key: line.get(key) for key in ("step", "loss", "held_out", "gradient_norm", "mixture")}
        for line in read_metrics(folder)
    ]


@pytest.fixture
def flipping(monkeypatch):
    """Call `after(loop, place, bit)` once in every step, after its first pass; places and bits are drawn."""

    def install(after) -> None:
        run_passes, draw, seen = Loop._run_passes, random.Random(0), set()

        def flipped(loop, passes):
            if loop.step in seen:
                return run_passes(loop, passes)
            seen.add(loop.step)
            if loop.step == 0:
                return run_passes(loop, passes)
            return after(loop, lambda: run_passes(loop, passes), draw.randrange(2**30), draw)

        monkeypatch.setattr(Loop, "_run_passes", flipped)

    return install


def parameter_of(loop, draw) -> torch.nn.Parameter:
    return draw.choice([one for one in loop.model.parameters() if one.requires_grad])


def warnings_of(told: list[dict]) -> list[str]:
    return [event["text"] for event in told if event["event"] == "warning"]


def flips_a_gradient(loop, run, place, draw):
    losses = run()
    gradients = [one.grad for one in loop.model.parameters() if one.grad is not None]
    flip(draw.choice(gradients), place, draw.randrange(32))
    return losses


def flips_an_activation(loop, run, place, draw):
    layers = [one for name, one in loop.model.named_modules() if name.endswith(("Wo", "output", "norm"))]
    done = []

    def hook(module, inputs, output):
        tensor = output[0] if isinstance(output, tuple) else output
        if not done and isinstance(tensor, torch.Tensor):
            done.append(True)
            copy = tensor.detach().clone()
            felt = (copy.view(-1).abs() > 0.01).nonzero().view(-1)  # of one that dropout has zeroed nothing is felt
            flip(copy, int(felt[place % len(felt)]), draw.randrange(18, 31))
            return tensor + (copy - tensor.detach())

    handle = draw.choice(layers[: len(layers) // 2]).register_forward_hook(hook)
    losses = run()
    handle.remove()
    assert done
    return losses


@pytest.mark.parametrize("flips", [flips_a_gradient, flips_an_activation])
def test_a_hundred_flips_of_a_hundred_are_noticed_and_change_nothing(small_blocks, tmp_path, flipping, flips):
    undisturbed = train(small_blocks, tmp_path / "undisturbed")
    told = []
    flipping(flips)
    disturbed = train(small_blocks, tmp_path / "disturbed", tell=told.append)
    found = [text for text in warnings_of(told) if "were corrupted on" in text]
    assert len(found) == FLIPS
    assert json.dumps(disturbed) == json.dumps(undisturbed)


def test_a_hundred_flips_in_weights_are_noticed(small_blocks, tmp_path, flipping):
    noticed = []

    def flips_a_weight(loop, run, place, draw):
        losses = run()
        for _ in range(FLIPS):
            weight, bit = parameter_of(loop, draw), draw.randrange(32)
            flip(weight, place, bit)
            with pytest.raises(UserError, match=r"has changed by itself in step 1 on .* its memory is broken") as error:
                loop._replay._check_weights(loop.step)
            noticed.append(str(error.value))
            flip(weight, place, bit)
        flip(parameter_of(loop, draw), place, 0)
        return losses

    flipping(flips_a_weight)
    with pytest.raises(UserError, match="has changed by itself in step 1"):
        train(small_blocks, tmp_path / "run")
    assert len(noticed) == FLIPS


def test_steps_that_come_out_differently_each_time_end_the_run(small_blocks, tmp_path, monkeypatch):
    run_passes, places = Loop._run_passes, iter(range(10**6))

    def broken(loop, passes):
        losses = run_passes(loop, passes)
        flip(next(one.grad for one in loop.model.parameters() if one.grad is not None), next(places), 20)
        return losses

    monkeypatch.setattr(Loop, "_run_passes", broken)
    with pytest.raises(UserError, match="step 0 gives other gradients each time on"):
        train(small_blocks, tmp_path / "run")


KEEPS_GRADIENTS = {
    "interval": 4,
    "lag": 0,
    "rules": {"mixture": {"rule": "dga"}},
    "lookahead": {"engine": "alignment", "averaged_steps": 3, "start": 0},
}


@pytest.mark.parametrize("meta", [VALUES["meta"], KEEPS_GRADIENTS], ids=["uniform", "alignment"])
def test_replays_change_no_bit(small_blocks, tmp_path, meta):
    values = {**VALUES, "objectives": ["mlm", "atd", "dtd", "cse"], "train": {**VALUES["train"], "steps": 12}}
    values["meta"] = meta
    runs = [
        train(small_blocks, tmp_path / str(every), {**values, "runtime": {"replay_every": every}})
        for every in (None, 1, 3)
    ]
    assert runs[0] == runs[1] == runs[2]


def rank_main(group, blocks, folder, flipped):
    train_step = Loop.train_step

    def step(loop):
        train_step(loop)
        if flipped and loop.step == 3 and group.rank == 1:
            flip(next(iter(loop.model.parameters())), 7, 0)

    Loop.train_step = step
    train_values = {**VALUES["train"], "steps": 6, "checkpoint_every": 2}
    config = load_settings(RunConfig, {**VALUES, "train": train_values, "runtime": {"num_workers": 2}})
    (Path(folder) / "run").mkdir(exist_ok=True)
    try:
        run_rank(config, blocks, Path(folder) / "run", group)
        said = "ended"
    except UserError as error:
        said = str(error)
    (Path(folder) / f"said-{group.rank}").write_text(said)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_weight_that_differs_between_ranks_never_becomes_a_checkpoint(small_blocks, tmp_path, flipped):
    run_ranks(rank_main, small_blocks, str(tmp_path), flipped)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    steps = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step_*"))
    if flipped:
        assert all("the ranks differ in " in one and "at step 4" in one for one in said)
        assert steps == ["step_00000002"]
    else:
        assert said == ["ended", "ended"]
        assert steps == ["step_00000002", "step_00000004", "step_00000006"]
