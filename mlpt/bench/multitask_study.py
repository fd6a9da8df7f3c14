"""Single-task, uniform, proportional and MT-uncertainty training side by side, over seeds, at equal numbers of steps.

python -m mlpt.bench.multitask_study MODEL --data-dir FOLDER --out FOLDER [--seeds 1 2 3] [--steps 60]

Started again it goes on where it was; `OUT/study.md` and `OUT/study.json` are rewritten after every run.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpt.downstream.multitask import run_multitask
from mlpt.downstream.multitask_config import MultitaskConfig
from mlpt.downstream.multitask_results import MultitaskResult
from mlpt.errors import UserError
from mlpt.settings import load_settings

TASKS = ("sst2", "cola", "rte", "mrpc", "stsb", "boolq", "cb", "copa", "wsc")
# Methods: what each sets beside the common settings, which freeze nothing. Single-task runs are plain BERT fine-tuning.
# The last one is the published method: candidates scored at every step, the lower half of the encoder frozen.
METHODS: dict[str, dict[str, Any]] = {
    "single-task": {"encoder": "shared", "sampler": {"rule": "proportional"}},
    "plain multi-task, proportional": {"encoder": "shared", "sampler": {"rule": "proportional"}},
    "CA-MTL, proportional": {"sampler": {"rule": "proportional"}},
    "CA-MTL, uniform": {"sampler": {"rule": "uniform"}},
    "CA-MTL, MT-uncertainty every 3 steps": {"sampler": {"rule": "mt_uncertainty", "rescore_every": 3}},
    "CA-MTL, MT-uncertainty, lower half frozen": {"sampler": {"rule": "mt_uncertainty"}, "freeze": "lower_half"},
}


@dataclass(frozen=True)
class Study:
    """The settings of a study; `steps` are those that each task gets, by itself or on average among the others."""

    model: str
    data_dir: str
    out: Path
    tasks: tuple[str, ...] = TASKS
    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int = 60
    learning_rate: float = 3e-4
    batch_size: int = 32
    max_length: int = 128
    precision: str = "auto"
    methods: tuple[str, ...] = tuple(METHODS)

    def runs(self) -> Iterator[tuple[str, MultitaskConfig]]:
        """(method, configuration) of every run, seed by seed, so that a study cut short has whole seeds."""
        for seed in self.seeds:
            for method in self.methods:
                settings = METHODS[method]
                if method == "single-task":
                    yield from ((method, self._run(method, seed, (task,), settings)) for task in self.tasks)
                else:
                    yield method, self._run(method, seed, self.tasks, settings)

    def _run(self, method: str, seed: int, tasks: tuple[str, ...], settings: dict[str, Any]) -> MultitaskConfig:
        steps = self.steps * len(tasks)
        name = "-".join([method.replace(", ", "-").replace(" ", "-").lower(), *(tasks if len(tasks) == 1 else ())])
        common = {
            "model": self.model,
            "source": {"data_dir": self.data_dir},
            "tasks": tasks,
            "seed": seed,
            "out": str(self.out / f"{name}-seed{seed}"),
            "conditional": {"max_length": self.max_length},
            "freeze": "none",  # a small encoder has little that is worth keeping as it is
            "batch_size": self.batch_size,
            "max_steps": steps,
            "eval_steps": max(1, steps // 2),
            "optimizer": {"lr": self.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
            "checkpoint_steps": 100,
            "feature_cache": str(self.out / "features"),
            "precision": self.precision,
            "keep_model": "none",
            "predict_test": False,
        }
        return load_settings(MultitaskConfig, common | settings)


def run_study(study: Study) -> str:
    """Every run that is not finished yet; returns the table."""
    results: dict[str, list[MultitaskResult]] = {}
    study.out.mkdir(parents=True, exist_ok=True)
    for method, config in study.runs():
        result = run_multitask(config, say=lambda text: None)
        results.setdefault(method, []).append(result)
        print(f"{config.out}: {result.steps} steps, {result.seconds:.0f} s", flush=True)
        (study.out / "study.json").write_text(json.dumps(scores_of(results), indent=1))
        (study.out / "study.md").write_text(table(results, study))
    return table(results, study)


def scores_of(results: dict[str, list[MultitaskResult]], which: str = "best") -> dict[str, dict[str, list[float]]]:
    """method -> task -> the task's selecting metric on its first dev split, one a seed."""
    scores: dict[str, dict[str, list[float]]] = {}
    for method, runs in results.items():
        for run in runs:
            for task, splits in getattr(run, which).items():
                value = next(iter(splits.values()))[run.selects[task]]
                scores.setdefault(method, {}).setdefault(task, []).append(value)
    return scores


def table(results: dict[str, list[MultitaskResult]], study: Study) -> str:
    """Markdown: a row a method, a column a task; mean and sample deviation over seeds, x 100."""
    runs = [run for of_method in results.values() for run in of_method]
    selects = {task: metric for run in runs for task, metric in run.selects.items()}
    majority = {
        task: next(iter(splits.values()))[selects[task]] for run in runs for task, splits in run.majority.items()
    }
    header = [
        "method",
        *(f"{task} ({selects.get(task, '')})" for task in study.tasks),
        "mean",
        "own maxima",
        "s a step",
    ]
    lines = [header, ["---"] * len(header)]
    lines.append(["majority", *(_percent([majority[task]]) if task in majority else "" for task in study.tasks)])
    lines[-1] += [_percent([statistics.fmean(majority.values())]), "", ""]
    maxima = scores_of(results, "running_best")
    for method, scores in scores_of(results).items():
        seconds = sum(run.seconds for run in results[method]) / sum(run.steps for run in results[method])
        cells = [_percent(scores.get(task, [])) for task in study.tasks]
        lines.append([method, *cells, _percent(_means(scores)), _percent(_means(maxima[method])), f"{seconds:.3f}"])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _means(scores: dict[str, list[float]]) -> list[float]:
    """The mean over tasks, for each seed that all tasks have."""
    return [statistics.fmean(of_seed) for of_seed in zip(*scores.values(), strict=False)]


def _percent(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mlpt.bench.multitask_study", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a run's folder, a Hugging Face folder or a hub name")
    parser.add_argument("--data-dir", required=True, help="folder of the original GLUE and SuperGLUE files")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(1, 2, 3))
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps for each task")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128, help="tokens; divides the encoder's width")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--methods", nargs="+", default=tuple(METHODS), choices=METHODS, metavar="METHOD")
    given = vars(parser.parse_args(words))
    try:
        several = {name: tuple(given[name]) for name in ("tasks", "seeds", "methods")}
        study = Study(**{**given, **several})
        print(run_study(study))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
