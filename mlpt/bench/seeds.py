"""Four seeds of one fine-tuning side by side, as Ray tasks on the machine's cores, against one after another.

One after another each run has the threads of all cores; side by side each has one core to itself.
"""

import os
import statistics
import tempfile
from pathlib import Path

import torch

from mlpt.bench.finetune import save_model, sst2_or_docs
from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.config import RuntimeConfig
from mlpt.downstream.config import FinetuneConfig
from mlpt.downstream.loading import quiet
from mlpt.runtime.cluster import ray_session
from mlpt.runtime.finetune import finetune_cells
from mlpt.tasks import load_task

SEEDS = (1, 2, 3, 4)
STEPS = 40


def run() -> list[Row]:
    """Examples a second of training, all seeds together; the start of processes and the evaluations are not counted."""
    cores = os.cpu_count() or 1
    task, source = sst2_or_docs()
    with tempfile.TemporaryDirectory() as scratch, quiet(), ray_session(RuntimeConfig(), cores):
        folder = Path(scratch) / "model"
        save_model(folder, load_task(task, source, ("train",)).splits["train"][:4096])
        settings = {"model": str(folder), "tasks": (task,), "source": source, "seeds": SEEDS, "max_steps": STEPS}
        rates = []
        for workers in (cores, 1):
            torch.set_num_threads(cores)
            config = FinetuneConfig(
                **settings, out=f"{scratch}/{workers}", eval_steps=STEPS, keep_model="none", predict_test=False
            )
            results = finetune_cells(config, workers, say=lambda text: None)
            rates.append(workers * statistics.mean(result.examples_per_second for result in results))
    ours, peer = rates
    name = f"{task}, {len(SEEDS)} seeds on {cores} cores, side by side against one after another"
    return [Row("finetune", name, ours, peer, ours / peer, "examples/s", peak_bytes(), machine())]
