"""Steps whose loss or gradient is not finite: seen by all ranks together, left out or the end, and never saved."""

import os
from pathlib import Path

import pytest
import running
import torch
from ranks import run_ranks
from safetensors.torch import load_file

from mlpt.config import RunConfig
from mlpt.errors import UserError
from mlpt.objectives import OBJECTIVES
from mlpt.objectives.mlm import MaskedLM
from mlpt.randomness import address
from mlpt.run.build import run_rank
from mlpt.run.launch import pretrain
from mlpt.settings import load_settings, merge
from mlpt.storage.checkpoint import Checkpoints
from mlpt.training.group import Group
from mlpt.training.tracker import read_metrics

TINY = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2},
    "objectives": {"cursed": {}, "mlm": {}},
    "meta": {"rules": {"mixture": {"rule": "fixed", "weights": {"cursed": 1}}}},
    "train": {
        "steps": 10,
        "batch_size": 8,
        "micro_batch_size": 4,
        "log_every": 1,
        "evaluate_batches": 1,
        "checkpoint_every": 2,
        "schedule": {"shape": "constant", "warmup": 0},
    },
    "runtime": {"num_workers": 0},
    "report": {"tensorboard": False, "progress": "off"},
}


class Broken(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


class Cursed(MaskedLM):
    """MLM that breaks at the steps of `CURSED_STEPS` (commas), in their second micro-batch alone."""

    name = "cursed"

    def corrupt(self, batch, generator):
        steps = [int(step) for step in os.environ.get("CURSED_STEPS", "").split(",") if step]
        inputs = super().corrupt(batch, generator)
        if generator.initial_seed() in [address(0, "noise/cursed", step, 1) for step in steps]:
            inputs.input_ids.zero_()
        return inputs

    def loss(self, model, inputs):
        loss = super().loss(model, inputs)
        broken = not inputs.input_ids.any()
        if broken and os.environ["CURSED_KIND"] == "loss":
            return loss * torch.nan
        return Broken.apply(loss) if broken else loss


@pytest.fixture
def curse(monkeypatch):
    """Call it with the steps at which something is not finite, and what is."""
    monkeypatch.setitem(OBJECTIVES, "cursed", Cursed)

    def cast(kind, *steps):
        monkeypatch.setenv("CURSED_KIND", kind)
        monkeypatch.setenv("CURSED_STEPS", ",".join(map(str, steps)))

    return cast


def run(blocks, folder, **train):
    return running.run(load_settings(RunConfig, merge(TINY, {"train": train})), blocks, folder)


@pytest.mark.parametrize(
    ("kind", "what"),
    [("loss", "the cursed loss is not finite"), ("gradient", "the gradient is not finite, though every loss is,")],
)
def test_the_run_stops_before_the_step_and_says_from_where_and_with_what_to_go_on(
    small_blocks, tmp_path, curse, capsys, kind, what
):
    curse(kind, 5)
    values = merge(TINY, {"data": {"source": small_blocks}, "run_dir": str(tmp_path / "a run")})
    with pytest.raises(UserError) as error:
        pretrain("quickstart", values)
    advice = f"mlpt pretrain --resume '{tmp_path / 'a run'}' train.on_nonfinite=skip"
    assert f"{what} at step 5; go on from the checkpoint of step 4 by `{advice}`" in str(error.value)
    assert "\n" not in str(error.value)
    checkpoints = Checkpoints(tmp_path / "a run/checkpoints")
    assert all(
        bool(one.isfinite().all()) for one in checkpoints.load(checkpoints.steps()[-1]).tensors["model"].values()
    )
    summary = pretrain(resume=tmp_path / "a run", settings={"train": {"on_nonfinite": "skip"}}).summary
    assert (summary["steps"], summary["resumed_at"], summary["skipped_steps"]) == (10, 4, 1)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_skipped_step_leaves_weights_and_moments_as_they_were(small_blocks, tmp_path, curse, kind):
    curse(kind, 5)
    summary = run(small_blocks, tmp_path / "six", steps=6, on_nonfinite="skip")
    run(small_blocks, tmp_path / "five", steps=5, on_nonfinite="skip")
    six, five = (Checkpoints(tmp_path / one / "checkpoints").load(n) for one, n in (("six", 6), ("five", 5)))
    for stem in ("model", "optimizer"):
        assert all(torch.equal(value, five.tensors[stem][name]) for name, value in six.tensors[stem].items())
    assert summary["skipped_steps"] == 1
    logged = {line["step"]: line for line in read_metrics(tmp_path / "six") if "gradient_norm" in line}
    assert logged[5]["gradient_norm"] > 0
    assert (logged[6]["gradient_norm"], logged[6]["skipped_steps"], logged[6]["loss"]) == (None, 1, {})


def test_the_logged_norm_is_that_of_the_gradient_before_clipping(small_blocks, tmp_path, curse):
    curse("loss")
    for clip in (0, 1e-6):
        run(small_blocks, tmp_path / str(clip), steps=1, clip=clip)
    norms = [read_metrics(tmp_path / str(clip))[1]["gradient_norm"] for clip in (0, 1e-6)]
    # After one step the first moment is 0.1 times the gradient that was taken.
    moments = Checkpoints(tmp_path / "0/checkpoints").load(1).tensors["optimizer"]
    squares = sum(float((value / 0.1).square().sum()) for name, value in moments.items() if name.endswith("exp_avg"))
    assert norms[0] == norms[1] == pytest.approx(squares**0.5, rel=1e-5)


def test_too_many_skipped_steps_in_a_row_end_the_run(small_blocks, tmp_path, curse):
    curse("gradient", 1, 2, 4, 5, 6, 7)
    with pytest.raises(
        UserError, match=r"at step 7 and the 3 before it, which were left out; go on .* step 6 .*lr=0\.0005"
    ):
        run(small_blocks, tmp_path, on_nonfinite="skip", nonfinite_limit=3)


def test_weights_that_are_not_finite_never_become_a_checkpoint(small_blocks, tmp_path, curse):
    curse("loss")
    run(small_blocks, tmp_path, steps=2)
    # Too large for float32: the very update is not finite, though the gradient is.
    with pytest.raises(UserError, match="weights are not finite after 4 steps; go on from the checkpoint of step 2"):
        run(small_blocks, tmp_path, optimizer={"lr": 1e39}, checkpoint_every=4, on_nonfinite="skip")
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2]


def test_a_run_without_a_checkpoint_is_told_to_begin_again(small_blocks, tmp_path, curse):
    curse("loss", 0)
    with pytest.raises(UserError, match=r"no checkpoint yet: begin again by `mlpt pretrain --resume \S+ --restart"):
        run(small_blocks, tmp_path)


def rank_main(group: Group, values: dict, blocks: str, folder: str) -> None:
    OBJECTIVES["cursed"] = Cursed
    run_rank(RunConfig.model_validate(values), blocks, Path(folder), group)


def test_what_one_rank_finds_is_skipped_on_all(small_blocks, tmp_path, curse):
    curse("loss", 3)
    run(small_blocks, tmp_path / "one", steps=5, on_nonfinite="skip")
    (tmp_path / "two").mkdir()
    config = load_settings(RunConfig, merge(TINY, {"train": {"steps": 5, "on_nonfinite": "skip"}}))
    run_ranks(rank_main, config.model_dump(), small_blocks, str(tmp_path / "two"))
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    assert [line.get("skipped_steps") for line in read_metrics(tmp_path / "two")] == [None, 0, 0, 0, 1, 1, None]
