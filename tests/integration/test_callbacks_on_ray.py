"""Callbacks of a run on Ray: called in the driver while workers train, and able to end the run."""

import threading

import pytest

import mlpt
from mlpt.storage.checkpoint import Checkpoints


class Ends(mlpt.Callback):
    """Asks for the end as soon as anything has been logged."""

    def __init__(self):
        self.heard: list[int] = []
        self.threads: set[str] = set()

    def on_step(self, event, control):
        self.heard.append(event["step"])
        self.threads.add(threading.current_thread().name)
        control.stop()


@pytest.mark.slow
def test_a_callback_ends_a_run_on_ray_with_a_checkpoint(small_blocks, tmp_path):
    ends = Ends()
    run = mlpt.pretrain(
        {
            "data": {"source": small_blocks},
            "model": {"hidden_size": 32, "layers": 1, "heads": 2},
            "train": {"steps": 1_000_000, "batch_size": 4, "evaluate_batches": 1, "log_every": 5},
            "report": {"html": False, "tensorboard": False},
            "run_dir": str(tmp_path / "run"),
        },
        callbacks=ends,
        quiet=True,
    )
    assert run.state == "stopped"
    assert ends.heard[0] == 5
    assert ends.threads == {"relay"}
    (step,) = Checkpoints(run.folder / "checkpoints").steps()
    assert 5 <= step < 1_000_000
