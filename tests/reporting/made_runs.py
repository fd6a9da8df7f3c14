"""Folders that look like runs, made from curves: for tests of what reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

TOKENS = 1024  # of a step
RATE = 2000.0  # tokens a second


def make_run(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    steps: int = 200,
    every: int = 10,
    lift: float = 0.0,
    finished: bool = True,
) -> Path:
    """A run with losses of two objectives that fall, `lift` nats higher than others; a line each `every` steps."""
    folder.mkdir(parents=True)
    config = {"name": "made", "seed": seed, "run_dir": str(folder), **(settings or {}), "report": {"html": True}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "policies").mkdir()
    first = {"version": 0, "mixture": {"mlm": 0.5, "cse": 0.5}, "adopted_at_step": 0}
    (folder / "policies/policy_000000.json").write_text(json.dumps(first))
    noise = np.random.default_rng(seed).normal(0, 0.05, (steps // every, 2))
    lines = [{"step": 0, "held_out_before": {"mlm": 9.0 + lift, "cse": 4.0}}]
    for at, step in enumerate(range(every, steps + 1, every)):
        share = 0.5 + 0.4 * step / steps
        lines.append(
            {
                "step": step,
                "tokens": step * TOKENS,
                "loss": {
                    "mlm": 3 + lift + 6 * float(np.exp(-3 * step / steps)) + float(noise[at, 0]),
                    "cse": 1 + 3 * float(np.exp(-3 * step / steps)) + float(noise[at, 1]),
                },
                "learning_rate": 1e-3 * (1 - step / steps),
                "mixture": {"mlm": share, "cse": 1 - share},
                "gradient_norm": None if at == 3 else 1.0 + abs(float(noise[at, 0])),
                "skipped_steps": 0,
                "tokens_per_second": RATE,
                "meta_stall_seconds": 0.01 * at,
            }
        )
        if at % 5 == 4:
            gradient = {"mlm": -0.01 + 0.02 * float(noise[at, 0]), "cse": 0.01}
            meta = {"hypergradient": gradient, "entropy": 0.69, "peak_bytes": 2**29 + at, "seconds": 0.2}
            lines.append({"step": step, "meta": meta, "mixture": {"mlm": share, "cse": 1 - share}, "policy": at // 5})
            lines.append({"step": step, "dev": {"mlm": 3.1 + lift + 1 / step + float(noise[at, 0]) / 10, "cse": 1.2}})
    if finished:
        lines.append({"step": steps, "held_out": {"mlm": 3.2 + lift + float(noise[-1, 0]) / 10, "cse": 1.1}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def add_samples(folder: Path) -> None:
    """Texts of a teacher and of a guide at two steps, with markup in them, and the teacher's figures."""
    (folder / "samples").mkdir()
    row = {
        "text": [" [CLS]", " play", "ing", " <b>", " games"],
        "kinds": "=mr==",
        "made": [" [CLS]", " [MASK]", " over", " <b>", " games"],
        "wanted": [None, " play", " under", None, " games"],
        "losses": [None, 2.5, 7.25, None, 0.5],
    }
    hard = {"text": row["text"], "losses": [None, 0.25, 1.5, 4.0, 9.75]}
    for step in (0, 200):
        objectives = {
            "teacher_made": {"kind": "teacher", "split": "dev", "rows": [row]},
            "guided": {"kind": "guide", "split": "train", "rows": [{**row, "hard": [0, 0, 0, 1, 1]}]},
        }
        said = {"step": step, "objectives": objectives, "hardness": [hard]}
        (folder / f"samples/step_{step:08d}.json").write_text(json.dumps(said))
    with open(folder / "metrics.jsonl", "a") as file:
        for step in range(20, 200, 20):
            figures = {"entropy_inputs": 3.0 - step / 100, "mask_share": step / 400, "h": 0.1, "query_loss": 4.0}
            file.write(json.dumps({"step": step, "meta": {"teacher": figures}}) + "\n")


def make_sweep(folder: Path) -> Path:
    """Four finished trials with two goals; d alone is beaten by another one in both."""
    folder.mkdir()
    asked = {"space": "sparsity", "words": ["sweep.trials=4"], "metrics": {"dev/mean": "min", "sparsity": "max"}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(asked))
    table = [("a", 1e-4, 3.0, 0.5), ("b", 1e-3, 2.0, 0.3), ("c", 1e-2, 2.5, 0.4), ("d", 3e-3, 3.5, 0.2)]
    rows = [
        {"trial_id": name, "status": "finished", "error": None, "seed": 0, "tokens": 1000, "seconds": 1.0}
        | {"run_dir": "/elsewhere", "parameter/train.optimizer.lr": lr, "dev/mean": loss, "sparsity": kept}
        for name, lr, loss, kept in table
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "trials.parquet")
    return folder
