"""What checkpoints cost training: the same run with many of them and with none, as a share of a minute's interval."""

import statistics
import tempfile

from rich.console import Console

from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.run.launch import pretrain

STEPS = 40
EVERY = 4
ROUNDS = 3
INTERVAL_S = 60.0


def run() -> list[Row]:
    """Percent of training time, at one checkpoint a minute; the background writer's work is in it."""
    with tempfile.TemporaryDirectory() as folder:
        extra = [
            _seconds(f"{folder}/many-{turn}", EVERY) - _seconds(f"{folder}/one-{turn}", STEPS) for turn in range(ROUNDS)
        ]
    each = statistics.median(extra) / (STEPS // EVERY - 1)  # the last step is saved in both
    name = "stall of one checkpoint a minute, BERT 4 x 256 (weights and AdamW moments)"
    return [
        Row("checkpoints", name, 100 * each / INTERVAL_S, None, None, "% of training time", peak_bytes(), machine())
    ]


def _seconds(run_dir: str, every: int) -> float:
    settings = {
        "run_dir": run_dir,
        "data": {"source": "docs", "docs_bytes": 1_000_000, "block_size": 128, "vocab_size": 8192},
        "model": {"architecture": "bert", "hidden_size": 256, "layers": 4, "heads": 4},
        "objectives": {"mlm": {}, "atd": None, "dtd": None, "cse": None},
        "meta": {"rules": {"mixture": {"rule": "fixed", "weights": {"mlm": 1}}}},
        "train": {"steps": STEPS, "batch_size": 32, "checkpoint_every": every, "evaluate_batches": 1},
        "runtime": {"num_workers": 0},
        "report": {"progress": "off", "tensorboard": False},
    }
    return float(pretrain("mometas", settings, console=Console(quiet=True)).summary["seconds"])
