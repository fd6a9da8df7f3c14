"""Layers shared out among two ranks (FSDP2): losses of DDP, whole checkpoints and snapshots, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from killing import KilledError, killed_at
from ranks import run_ranks
from safetensors.torch import load_file

from mlpt.config import RunConfig
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.models.sharded import is_sharded, local, shard_layers
from mlpt.run.build import run_rank
from mlpt.settings import load_settings, merge
from mlpt.training.group import Group
from mlpt.training.tracker import read_metrics

pytestmark = pytest.mark.timeout(900)
TINY = {
    "model": {"hidden_size": 32, "layers": 2, "heads": 2, "dropout": 0.1},
    "objectives": ["mlm", "dtd", "cse"],  # heads of their own, which a rank may draw alone
    "meta": {"interval": 4, "lag": 2, "rules": {"mixture": "dga"}, "lookahead": {"engine": "one_step", "start": 1}},
    "train": {
        "steps": 8,
        "batch_size": 16,
        "micro_batch_size": 4,  # two passes a rank: gradients are added up before they are exchanged
        "draw": "stratified",
        "clip": 0.5,
        "log_every": 1,
        "evaluate_batches": 3,  # an odd number for two ranks
        "checkpoint_every": 4,
        "keep": 10,
        "parallel": "fsdp",
    },
    "report": {"tensorboard": False},
}


def config_with(**changes) -> RunConfig:
    return load_settings(RunConfig, merge(TINY, changes))


def rank_main(group, runs, blocks):
    for config, folder, step in runs:
        kill = {} if step is None else {"must_save": killed_at(step)}
        try:
            run_rank(RunConfig.model_validate(config), blocks, Path(folder), group, **kill)
        except KilledError:
            assert step is not None
        if step is not None and group.leads:
            shutil.copytree(folder, f"{folder}_left")
        torch.distributed.barrier()


@pytest.fixture(scope="module")
def runs(small_blocks, tmp_path_factory):
    """A run with its layers shared out, one with DDP, and one that was killed (`killed_left`) and went on."""
    folder = tmp_path_factory.mktemp("runs")
    ours, theirs = config_with(), config_with(train={"parallel": "ddp"})
    wanted = [(ours, "fsdp", None), (theirs, "ddp", None), (ours, "killed", 6), (ours, "killed", None)]
    for _, name, _ in wanted:
        (folder / name / "checkpoints").mkdir(parents=True, exist_ok=True)
    run_ranks(rank_main, [(one.model_dump(), str(folder / name), step) for one, name, step in wanted], small_blocks)
    return folder


def lines(folder):
    kept = ("step", "loss", "held_out", "held_out_before", "mixture", "policy", "gradient_norm")
    return [tuple(json.dumps(line.get(key)) for key in kept) for line in read_metrics(folder)]


def numbers(folder):
    for line in read_metrics(folder):
        for key in ("loss", "held_out", "held_out_before", "mixture"):
            yield from (line.get(key) or {}).values()
        yield from [line["gradient_norm"]] if line.get("gradient_norm") else []


def tensors(folder, step=8):
    place = folder / "checkpoints" / f"step_{step:08d}"
    return load_file(place / "model.safetensors") | load_file(place / "optimizer.safetensors")


def test_layers_and_nothing_else_are_shared_out(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        config = ModelConfig(architecture="bert", hidden_size=32, layers=2, heads=2)
        model = build_encoder(config, Vocabulary(64, pad=0, mask=1, cls=2, sep=3, unk=4), {}, 16, seed=0)
        assert not is_sharded(model)
        shard_layers(model, torch.device("cpu"))
        assert is_sharded(model)
        shared = {name: local(one) is not one for name, one in model.named_parameters()}
        assert shared == {name: ".layer." in name for name in shared}
        assert sum(shared.values()) > 20
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_layers_shared_out_train_as_those_of_ddp(runs):
    ours, theirs = (list(numbers(runs / name)) for name in ("fsdp", "ddp"))
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert len(ours) > 40


@pytest.mark.slow
def test_checkpoints_and_models_of_layers_shared_out_are_whole(runs):
    mine, other = tensors(runs / "fsdp"), tensors(runs / "ddp")
    assert mine.keys() == other.keys()
    for name, one in mine.items():  # but for the order of additions
        torch.testing.assert_close(one, other[name], rtol=1e-2, atol=1e-4)
    saved = load_file(runs / "fsdp/model/model.safetensors")
    for name, one in load_file(runs / "ddp/model/model.safetensors").items():
        torch.testing.assert_close(saved[name], one, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_a_killed_run_of_layers_shared_out_goes_on_bit_for_bit(runs):
    assert lines(runs / "killed") == lines(runs / "fsdp")
    mine = tensors(runs / "fsdp")
    assert all(torch.equal(one, mine[name]) for name, one in tensors(runs / "killed").items())


@pytest.mark.slow
def test_one_rank_goes_on_with_what_two_had_shared_out(runs, small_blocks):
    torch.set_num_threads(1)
    left = runs / "killed_left"
    assert run_rank(config_with(), small_blocks, left, Group())["resumed_at"] == 4
    assert list(numbers(left)) == pytest.approx(list(numbers(runs / "fsdp")), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"masks": {}}, "can't be combined with masks"),
        ({"train": {"compile": True}}, r"can't be combined with train\.compile"),
        ({"train": {"precision": "fp16"}}, "can't be combined with train.precision=fp16"),
        ({"train": {"compress_gradients": True}}, "can't be combined with train.compress_gradients"),
        ({"train": {"optimizer": {"kind": "muon"}}, "meta": {"rules": {"mixture": "uniform"}}}, "optimizer.kind=muon"),
        ({"meta": {"lookahead": {"engine": "alignment"}}}, "meta.lookahead.engine=alignment"),
        ({"runtime": {"replay_every": 100}}, "runtime.replay_every"),
        ({"runtime": {"num_workers": [1, 2]}}, "has a fixed number of workers"),
        ({"runtime": {"num_workers": 3}}, "4 micro-batches are not a multiple of 3 workers"),
        ({"objectives": ["mlm", "distill"]}, "leave objectives.distill out"),
        ({"objectives": {"mlm": {"smoothing": {"kind": "token", "reference": "frozen"}}}}, "leave objectives.mlm out"),
    ],
)
def test_what_can_not_be_combined_is_refused_when_the_configuration_is_read(changes, says):
    with pytest.raises(UserError, match=says) as raised:
        config_with(**changes)
    assert "\n" not in str(raised.value)
    assert "or take train.parallel=ddp" in str(raised.value)
