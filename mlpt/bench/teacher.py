"""What a soft teacher costs pretraining through Ray: recipe `denoiser` against masked language modelling alone."""

import statistics
import tempfile
from typing import Any

from rich.console import Console

from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.run.launch import pretrain

STEPS = 200
ROUNDS = 2

MADE: dict[str, Any] = {
    "objectives": {"teacher_made": {"samples": "soft"}},
    "meta": {"rules": {"mixture": {"rule": "fixed", "weights": {"teacher_made": 1}}, "teacher": {"start": 0}}},
}
PLAIN: dict[str, Any] = {
    "objectives": {"teacher_made": None},
    "meta": {"rules": {"mixture": {"rule": "uniform"}, "teacher": None}},
}


def run() -> list[Row]:
    """Seconds of training at equal steps, the runs taken in turn; start-up and evaluation are not counted."""
    seconds: dict[str, list[float]] = {"made": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS):
            for name, one in (("made", MADE), ("plain", PLAIN)):
                settings = {
                    "run_dir": f"{folder}/{name}-{turn}",
                    "train": {"steps": STEPS, "evaluate_batches": 1, "checkpoint_every": STEPS},
                    "report": {"progress": "off", "tensorboard": False},
                    **one,
                }
                summary = pretrain("denoiser", settings, console=Console(quiet=True)).summary
                seconds[name].append(summary["seconds"])
    ours, peer = (statistics.median(seconds[name]) for name in ("made", "plain"))
    name = "pretraining by a soft teacher, interval 20, against masked modelling"
    return [Row("teacher", name, ours, peer, peer / ours, "seconds", peak_bytes(), machine())]
