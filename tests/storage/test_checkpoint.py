"""Checkpoints: whole or not at all, the last k and the best kept, damage found and passed over."""

import json
import os
import resource

import pytest
import torch

from mlpt.errors import UserError
from mlpt.storage.checkpoint import COMMITTED, Checkpoints

TENSORS = {"model": {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor(0.1)}}


def saved(folder, *steps, keep=3, best=()):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, {"note": f"at {step}"}, TENSORS, step in best)
    checkpoints.wait()
    return checkpoints


def test_what_was_saved_is_loaded_exactly(tmp_path):
    checkpoint = saved(tmp_path, 10).latest(say=print)
    assert (checkpoint.step, checkpoint.state["note"]) == (10, "at 10")
    assert torch.equal(checkpoint.tensors["model"]["weight"], TENSORS["model"]["weight"])
    assert torch.equal(checkpoint.tensors["model"]["bias"], TENSORS["model"]["bias"])


def test_saving_copies_what_training_may_change_meanwhile(tmp_path):
    weight = torch.zeros(200_000)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {}, {"model": {"weight": weight}})
    weight.fill_(1)
    checkpoints.wait()
    assert checkpoints.load(1).tensors["model"]["weight"].sum() == 0


def test_the_last_k_and_the_best_are_kept(tmp_path):
    assert saved(tmp_path, 1, 2, 3, 4, 5, keep=2, best=(2,)).steps() == [2, 4, 5]


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "uncommitted", "garbled state"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    checkpoints = saved(tmp_path, 1, 2)
    file = checkpoints.path(2) / "model.safetensors"
    if damage == "truncate":
        os.truncate(file, 20)
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    elif damage == "uncommitted":
        (checkpoints.path(2) / COMMITTED).unlink()
    else:
        (checkpoints.path(2) / "state.json").write_text("{")
    said = []
    assert checkpoints.latest(said.append).step == 1
    assert len(said) == (0 if damage == "uncommitted" else 1)  # never committed: nothing was lost, nothing is said


def test_no_checkpoint_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "none").latest(say=print) is None


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path):
    checkpoints = saved(tmp_path, 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))  # the kernel refuses longer files, as a full disk would
    try:
        checkpoints.save(2, {}, {"model": {"weight": torch.zeros(10_000)}})
        with pytest.raises(UserError, match="no room to write checkpoint"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert checkpoints.steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_the_list_of_files_is_committed_last_and_complete(tmp_path):
    path = saved(tmp_path, 7).path(7)
    listed = json.loads((path / COMMITTED).read_text())["files"]
    assert set(listed) == {file.name for file in path.iterdir()} - {COMMITTED}
