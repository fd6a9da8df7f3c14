"""Four seeds of one fine-tuning side by side, as Ray tasks on the machine's cores, against one after another.

One after another each run has the threads of all cores; side by side each has one core to itself.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from mlpt.bench.finetune import save_model, sst2_or_docs
from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.downstream.config import FinetuneConfig
from mlpt.models.quiet import quiet
from mlpt.runtime.finetune import finetune_cells
from mlpt.tasks import load_task

SEEDS = (1, 2, 3, 4)
STEPS = 200
ROUNDS = 2


def run() -> list[Row]:
    """Examples a second, all seeds together: of the cells' own time (training and one evaluation of each), and of the
    whole command, to which the start of Ray and its processes and the reading of the rows belong."""
    cores = os.cpu_count() or 1
    task, source = sst2_or_docs()
    with tempfile.TemporaryDirectory() as scratch, quiet():
        folder = Path(scratch) / "model"
        save_model(folder, load_task(task, source, ("train",)).splits["train"][:4096])
        settings = {"model": str(folder), "tasks": (task,), "source": source, "seeds": SEEDS, "max_steps": STEPS}
        shared = FinetuneConfig(**settings, out=scratch, evaluate_every=STEPS, keep_model="none", predict_test=False)
        rounds = []
        for turn in range(ROUNDS):
            ours, peer = (shared.model_copy(update={"out": f"{scratch}/{turn}-{side}"}) for side in ("ours", "peer"))
            rounds.append((_rates(ours, cores), _rates(peer, 1)))
    name = f"{task}, {len(SEEDS)} seeds on {cores} cores, side by side against one after another"
    return [
        _row(f"{name}: {what}", [(ours[which], peer[which]) for ours, peer in rounds])
        for which, what in enumerate(("the cells' own time", "the whole command"))
    ]


def _rates(config: FinetuneConfig, workers: int) -> tuple[float, float]:
    torch.set_num_threads(os.cpu_count() or 1)
    begun = time.perf_counter()
    results = finetune_cells(config, workers, say=lambda text: None)
    seconds = time.perf_counter() - begun
    own = workers * statistics.mean(result.examples_per_second for result in results)
    return own, len(SEEDS) * STEPS * config.batch_size / seconds


def _row(name: str, rounds: list[tuple[float, float]]) -> Row:
    ours, peer = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    ratio = statistics.median(mine / theirs for mine, theirs in rounds)
    return Row("finetune", name, ours, peer, ratio, "examples/s", peak_bytes(), machine())
