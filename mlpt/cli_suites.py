"""`mlpt evaluate MODEL... --suite ...`: what models know without fine-tuning. Parse, call, print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpt.api.evaluation import folders_of
from mlpt.downstream.suite_report import report
from mlpt.downstream.suites import build_suites, choose_suites, measure
from mlpt.outputs import write_json
from mlpt.reporting.steps import Steps
from mlpt.reporting.text import say


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
