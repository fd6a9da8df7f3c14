"""The comparison of mixture rules in docs/papers/mometas.md: equal tokens for each rule, several seeds.

    python -m mlpt.bench.mixture_study --source FOLDER --out FOLDER [--seeds 3] [--steps 1500]

Every cell is a run of `mlpt pretrain` with its own folder: started again, the study goes on where it was.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mlpt.launch import pretrain
from mlpt.training.checkpoint import Checkpoints

OBJECTIVES = ["mlm", "atd", "dtd", "cse"]
# What each row of the table changes against the others.
RULES: dict[str, dict[str, Any]] = {
    "mlm only": {"rule": "fixed", "weights": {"mlm": 1}},
    "uniform": {"rule": "uniform"},
    "mometas": {"rule": "mometas"},
    "hypergradient": {"rule": "hypergradient"},
}


def settings_of(rule: str, seed: int, source: str, steps: int, folder: Path) -> dict[str, Any]:
    """One cell: 3 layers x 128, vocabulary 8,192, 32 x 64 tokens a step."""
    return {
        "name": "mixture-study",
        "seed": seed,
        "run_dir": str(folder),
        "data": {"source": source, "block_size": 64, "vocab_size": 8192},
        "objectives": OBJECTIVES,
        "meta": {"interval": 100, "lag": 0, "rules": {"mixture": RULES[rule]}},
        "train": {
            "micro_batch_size": 32,
            "steps": steps,
            "precision": "bf16",  # held-out losses are measured in float32 all the same
            "evaluate_batches": 32,
            "log_every": 100,
            "checkpoint_every": 500,
            "keep": 1,
        },
        "runtime": {"num_workers": 0},
        "report": {"progress": "off", "tensorboard": False},
    }


def run_cell(rule: str, seed: int, source: str, steps: int, out: Path) -> dict[str, Any]:
    """The summary of one cell: read if it is finished, resumed if it was begun, run otherwise."""
    folder = out / f"{rule.replace(' ', '-')}-seed{seed}"
    finished = folder / "summary.json"
    if not finished.is_file():
        quiet = Console(quiet=True)
        if (folder / "config.yaml").is_file():
            pretrain(resume=folder, restart=not Checkpoints(folder / "checkpoints").steps(), console=quiet)
        else:
            pretrain("mometas", settings_of(rule, seed, source, steps, folder), console=quiet)
    summary: dict[str, Any] = json.loads(finished.read_text())
    return summary


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean and standard deviation over seeds of each held-out loss, the last mixtures, the cost."""
    head = ["rule", *(f"{name} (nats)" for name in OBJECTIVES), "final mixture, mean", "meta, share of time"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for rule, summaries in results.items():
        cells = [rule]
        for name in OBJECTIVES:
            values = [summary["held_out"][name] for summary in summaries]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        shares = (statistics.mean(s["mixture"].get(name, 0.0) for s in summaries) for name in OBJECTIVES)
        cells.append(" / ".join(f"{share:.2f}" for share in shares))
        cost = statistics.mean((s["meta"]["launch"] + s["meta"]["stall"]) / s["seconds"] for s in summaries)
        cells.append(f"{cost:.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Run or finish the study, seed by seed, and print the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="text, or a prepared folder")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args(words)
    results: dict[str, list[dict[str, Any]]] = {rule: [] for rule in RULES}
    for seed in range(options.seeds):
        for rule in RULES:
            results[rule].append(run_cell(rule, seed, options.source, options.steps, options.out))
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
