"""What the meta-learner costs training through Ray: recipe `mometas` against the same with rule `fixed`."""

import statistics
import tempfile
from typing import Any

from rich.console import Console

from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.run.launch import pretrain

STEPS = 300
ROUNDS = 2


def run() -> list[Row]:
    """Tokens a second of training, the runs taken in turn; start-up and evaluation are not counted."""
    weights = {"mlm": 1, "atd": 1, "dtd": 1, "cse": 1}
    # A learning rate of next to nothing: all the work of the rule, and the same objectives drawn in both runs.
    rules: dict[str, dict[str, Any]] = {
        "mometas": {"rule": "mometas", "lr": 1e-12},
        "fixed": {"rule": "fixed", "weights": weights},
    }
    rates: dict[str, list[float]] = {name: [] for name in rules}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS):
            for name, rule in rules.items():
                settings = {
                    "run_dir": f"{folder}/{name}-{turn}",
                    "train": {"steps": STEPS, "evaluate_batches": 1, "checkpoint_every": STEPS},
                    "meta": {"interval": 100, "lag": 100, "rules": {"mixture": rule}},
                    "report": {"progress": "off", "tensorboard": False},
                }
                run = pretrain("mometas", settings, console=Console(quiet=True))
                rates[name].append(run.summary["tokens_per_second"])
    ours, peer = (statistics.median(rates[name]) for name in ("mometas", "fixed"))
    row = Row(
        "meta", "training with mometas, interval 100", ours, peer, ours / peer, "tokens/s", peak_bytes(), machine()
    )
    return [row]
