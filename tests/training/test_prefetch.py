"""Inputs made one micro-batch ahead: the same numbers, whenever they were made."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpt.config import RunConfig
from mlpt.data.batch import Arm
from mlpt.objectives.base import Inputs
from mlpt.run.build import run_rank
from mlpt.settings import load_settings
from mlpt.storage.checkpoint import Checkpoints
from mlpt.training.arm_rows import ArmRows, MicroBatch
from mlpt.training.group import Group
from mlpt.training.prefetch import Prefetch
from mlpt.training.tracker import read_metrics

CPU = torch.device("cpu")


def micro_batch(slot: int, *rows: int) -> MicroBatch:
    return MicroBatch(slot, Arm("mlm", "mlm", "all"), np.array(rows), 1.0, 1.0)


class Maker:
    """Makes inputs that say what was wanted, and notes by which thread."""

    def __init__(self):
        self.made: list[tuple[int, int, bool]] = []
        self.done = threading.Event()

    def __call__(self, step: int, wanted: MicroBatch) -> Inputs:
        if wanted.slot == 9:
            raise ValueError("no such rows")
        in_thread = threading.current_thread() is not threading.main_thread()
        self.made.append((step, wanted.slot, in_thread))
        if in_thread:
            self.done.set()
        return Inputs(torch.tensor([[step, wanted.slot, *wanted.rows]]))


def test_what_comes_next_is_made_beside_the_step_and_once():
    maker = Maker()
    prefetch = Prefetch(maker, CPU)
    first, second = micro_batch(0, 7, 8), micro_batch(1, 5)
    assert prefetch.get((3, first), after=(3, second)).input_ids.tolist() == [[3, 0, 7, 8]]
    assert maker.done.wait(60)  # before anybody asks for it
    assert prefetch.get((3, second)).input_ids.tolist() == [[3, 1, 5]]
    assert maker.made == [(3, 0, False), (3, 1, True)]
    prefetch.close()


@pytest.mark.parametrize("wanted", [(4, micro_batch(0, 7)), (3, micro_batch(1, 7)), (3, micro_batch(0, 8))])
def test_what_was_not_foreseen_is_made_when_it_is_wanted(wanted):
    maker = Maker()
    prefetch = Prefetch(maker, CPU)
    prefetch.get((2, micro_batch(0)), after=(3, micro_batch(0, 7)))
    step, one = wanted
    assert prefetch.get(wanted).input_ids.tolist() == [[step, one.slot, *one.rows]]
    prefetch.close()
    assert (step, one.slot, False) in maker.made


def test_what_went_wrong_in_the_thread_is_raised_where_the_inputs_are_wanted():
    prefetch = Prefetch(Maker(), CPU)
    prefetch.get((0, micro_batch(0)), after=(0, micro_batch(9)))
    with pytest.raises(ValueError, match="no such rows"):
        prefetch.get((0, micro_batch(9)))
    prefetch.close()


SETTINGS = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.1},
    "objectives": ["mlm", "dtd"],
    "meta": {"interval": 4, "lag": 2, "rules": {"mixture": {"rule": "mometas"}}},
    "train": {"steps": 12, "batch_size": 8, "log_every": 1, "evaluate_batches": 2, "draw": "stratified"},
    "report": {"tensorboard": False},
}


def test_a_run_is_the_same_with_and_without_and_no_policy_changes_under_what_was_made(
    small_blocks, tmp_path, monkeypatch
):
    def run(folder: Path) -> list[dict]:
        (folder / "checkpoints").mkdir(parents=True)
        run_rank(load_settings(RunConfig, SETTINGS), small_blocks, folder, Group())
        kept = ("step", "loss", "held_out", "mixture")
        return [{key: line[key] for key in kept if key in line} for line in read_metrics(folder)]

    by_thread: list[tuple[int, int]] = []
    inputs = ArmRows.inputs

    def noted(work, step, one):
        if threading.current_thread() is not threading.main_thread():
            by_thread.append((step, one.slot))
        return inputs(work, step, one)

    monkeypatch.setattr(ArmRows, "inputs", noted)
    ahead = run(tmp_path / "ahead")
    # Two micro-batches a step. Updates begin at 0, 4 and 8, and new policies come at 2, 6 and 10.
    firsts = [(step, 0) for step in range(12) if step % 2]
    assert sorted(by_thread) == sorted([(step, 1) for step in range(12)] + firsts)
    get = Prefetch.get
    monkeypatch.setattr(Prefetch, "get", lambda self, wanted, after=None: get(self, wanted))
    by_thread.clear()
    assert run(tmp_path / "behind") == ahead
    assert by_thread == []
    one, other = (Checkpoints(tmp_path / name / "checkpoints").load(12) for name in ("ahead", "behind"))
    assert all(torch.equal(one.tensors["model"][name], value) for name, value in other.tensors["model"].items())
