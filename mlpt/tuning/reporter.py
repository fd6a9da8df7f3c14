"""What a trial tells Ray Tune: a report after each evaluation, and one at the end."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from mlpt.tuning.plan import Budget, Plan

FINISHED = "finished.json"  # a trial's last report
LATENCY = "latency"  # ms; measured once, at a trial's end
_WORST = 1e6  # stands in for the metrics of a trial that failed; Tune and Optuna cannot rank NaN


class Reporter:
    """Reports of one trial, in tokens of its budget."""

    def __init__(self, plan: Plan, run_dir: Path, budget: Budget):
        self._plan, self._run_dir, self._budget = plan, run_dir, budget
        self._begun = time.perf_counter()
        self._latest: dict[str, Any] = {}

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Hear an evaluation; the last one is left to `finish`.

        A scheduler that pauses gets it with the checkpoint. Latency is known at the end alone, and Tune refuses reports
        that lack a metric: where it is one, nothing is reported before (and `Space` allows no scheduler).
        """
        self._latest = self._report(step, values)
        if not self._plan.pausing and LATENCY not in self._plan.space.metrics and step < self._budget.steps:
            tune.report(self._latest)

    def checkpointed(self, step: int, path: Path) -> None:
        """Hear that the checkpoint of the newest evaluation is at `path`."""
        if step < self._budget.steps:
            tune.report(self._latest, checkpoint=tune.Checkpoint.from_directory(str(path)))

    def wants_checkpoint(self, step: int) -> bool:
        """True if a checkpoint of `step` should be reported."""
        return self._plan.pausing and step == self._latest.get("step") and step < self._budget.steps

    def finish(self, values: Mapping[str, float]) -> None:
        """Report the end of the run: the last evaluation and what else is known by then."""
        last = self._report(self._budget.steps, values)
        (self._run_dir / FINISHED).write_text(json.dumps(last))
        tune.report(last)

    def _report(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        return {
            "step": step,
            "tokens": step * self._budget.tokens_per_step,
            "budget": self._budget.tokens,
            "evaluations": step // self._budget.every,
            "seconds": time.perf_counter() - self._begun,
            "run_dir": str(self._run_dir),
            **values,
        }


def report_again(run_dir: Path) -> bool:
    """Report a trial that ended just before its sweep was killed, and Tune never wrote that down; False if it did not.

    `run_dir` is its folder.
    """
    if not (run_dir / FINISHED).is_file():
        return False
    tune.report(json.loads((run_dir / FINISHED).read_text()))
    return True


def report_failure(plan: Plan, run_dir: Path, error: str, seconds: float) -> None:
    """Report a run that cannot succeed with the worst metrics and its reason; Tune does not try it again."""
    worst = {name: _WORST if mode == "min" else -_WORST for name, mode in plan.space.metrics.items()}
    spent = {"tokens": 0, "evaluations": 0, "seconds": seconds, "run_dir": str(run_dir)}
    tune.report({**worst, **spent, "error": error})
