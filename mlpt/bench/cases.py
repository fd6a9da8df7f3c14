"""The benchmarks by name; each module has a `run() -> list[Row]`."""

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from mlpt.bench.harness import Row
from mlpt.errors import UserError
from mlpt.outputs import write_json

CASES = {
    "step": ("mlpt.bench.step", "mlpt.bench.step_parts", "mlpt.bench.step_profile"),
    "scale": ("mlpt.bench.scale",),
    "data": ("mlpt.bench.data",),
    "meta": ("mlpt.bench.meta", "mlpt.bench.overhead"),
    "hypergradient": ("mlpt.bench.hypergradient",),
    "finetune": ("mlpt.bench.finetune", "mlpt.bench.seeds"),
    "multitask": ("mlpt.bench.multitask",),
    "mixture": ("mlpt.bench.mixture",),
    "suites": ("mlpt.bench.suites",),
    "masks": ("mlpt.bench.masks",),
    "teacher": ("mlpt.bench.many", "mlpt.bench.taught", "mlpt.bench.sending", "mlpt.bench.teacher"),
    "question": ("mlpt.bench.question",),
    "checkpoints": ("mlpt.bench.checkpoints",),
    "sweep": ("mlpt.bench.sweep",),
    "soak": ("mlpt.bench.soak",),
    "faults": ("mlpt.bench.faults",),
    "partitions": ("mlpt.bench.partitions",),
}
ON_REQUEST = {"sweep", "soak", "faults", "partitions"}  # take ten minutes and more


def run_cases(names: Iterable[str]) -> Iterator[Row]:
    """Rows of the named cases (none: all but the longest), as they are measured; `UserError` for an unknown name."""
    chosen = list(names) or [name for name in CASES if name not in ON_REQUEST]
    for name in chosen:
        if name not in CASES:
            raise UserError(f"there is no benchmark '{name}'; there are {', '.join(CASES)}")
    for name in chosen:
        for module in CASES[name]:
            yield from importlib.import_module(module).run()


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Rows as a JSON list of objects."""
    write_json(path, [asdict(row) for row in rows])
