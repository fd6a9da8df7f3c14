"""`mlpt evaluate MODEL... --suite ...` and `--tasks ...`: what models know without and with fine-tuning. Parse, call,
print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpt.api.evaluation import folders_of, scores_of
from mlpt.downstream.suite_report import report
from mlpt.downstream.suites import build_suites, choose_suites, measure
from mlpt.outputs import write_json
from mlpt.reporting.steps import Steps
from mlpt.reporting.text import say
from mlpt.settings import parse_overrides


def evaluate_suites(
    models: Sequence[str],
    suites: Sequence[str],
    settings: Sequence[str],
    masks: str | None,
    dense: bool,
    json_file: Path | None,
) -> None:
    """Measure every model by every suite and print the tables; `json_file` grows with each suite that is done."""
    folders = folders_of(models, say)
    built = build_suites(choose_suites(suites), settings)
    results: dict[str, Any] = {}
    try:
        with Steps() as steps:
            for results in measure(folders, built, steps.show, masks, dense):
                if json_file is not None:
                    write_json(json_file, {"suites": results})
    finally:  # what is measured stays known when a later model can't be
        for name, suite in built.items():
            if name in results and results[name]["models"]:
                say(report(name, suite, results[name]) + "\n")


def evaluate_tasks(
    model: str,
    given: dict[str, Any],
    data_dir: str | None,
    task_files: Sequence[str],
    settings: Sequence[str],
    json_file: Path | None,
) -> None:
    """Print the scores of a fine-tuned model, as fractions of 100 like `mlpt finetune`."""
    found = scores_of(model, given, data_dir, task_files, parse_overrides(settings), say)
    for task, splits in found.items():
        for split, metrics in splits.items():
            figures = ", ".join(f"{metric} {100 * value:.2f}" for metric, value in metrics.items())
            say(f"{task} {split}: {figures}")
    if json_file is not None:
        write_json(json_file, {"tasks": found})
