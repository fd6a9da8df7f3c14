"""`mlpt bench sweep`: a sweep of the quickstart model against the same trials as runs of their own, one after another.

Twelve learning rates, 204,800 tokens each (100 steps of 32 x 64), three evaluations on the way; the text is prepared
before. Both sides are commands as a user types them, with their default runtime on this machine.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.config import load_run_config
from mlpt.data.prepare import prepare
from mlpt.errors import UserError
from mlpt.settings import parse_overrides

TRIALS = 12
TOKENS = 204_800
EVALUATIONS = 3
SPACE = '''"""How much faster is a sweep than its trials one after another?"""
from ray import tune
from mlpt.tuning.space import Space
space = Space(
    parameters={{"train.optimizer.lr": tune.grid_search({rates})}},
    metrics={{"dev/mlm": "min"}}, tokens={tokens}, trials=1, evaluations={evaluations},
    search="grid", scheduler="none",
)
'''


@dataclass(frozen=True)
class Span:
    """One trial on the clock, in seconds: `busy` is what it trained and evaluated between `start` and `end`."""

    start: float
    end: float
    busy: float


def run(trials: int = TRIALS, tokens: int = TOKENS, settings: Sequence[str] = ()) -> list[Row]:
    """Trials a minute, and what a trial after the first of its process costs beside its training and evaluations.

    settings  `key=value` words for every trial, over the recipe `quickstart`.
    """
    rates = [float(rate) for rate in np.geomspace(3e-4, 1e-2, trials).round(6)]
    with tempfile.TemporaryDirectory(prefix="sweep", dir="/tmp") as scratch:
        folder = Path(scratch)
        words = [*settings, f"data.source={_prepared(folder, settings)}"]
        ours = _swept(folder, rates, tokens, words)
        peer = sum(_alone(folder, rate, tokens, words) for rate in rates)
        extra = overheads(_spans(folder / "sweep"))
    ours, peer = 60 * trials / ours, 60 * trials / peer
    name = f"{trials} trials of {tokens:,} tokens, `mlpt tune` against `mlpt pretrain` one after another"
    rows = [Row("sweep", name, ours, peer, ours / peer, "trials/min", peak_bytes(), machine())]
    if extra:
        name = "a trial after the first of its process, beside training and evaluations (median)"
        rows.append(Row("sweep", name, statistics.median(extra), None, None, "s", peak_bytes(), machine()))
    return rows


def overheads(spans: Sequence[Span]) -> list[float]:
    """Seconds that each trial after the first of its process took from its predecessor's end, less what it was busy.

    Processes take the next trial when they are free: a trial follows the one that ended last before it started.
    """
    free: list[float] = []  # when each process ended its last trial
    found = []
    for span in sorted(spans, key=lambda one: one.start):
        ended = [end for end in free if end <= span.start]
        if ended:
            free.remove(max(ended))
            found.append(span.end - max(ended) - span.busy)
        free.append(span.end)
    return found


def _prepared(folder: Path, settings: Sequence[str]) -> Path:
    blocks = folder / "blocks"
    prepare(load_run_config("quickstart", parse_overrides(settings)).data, str(blocks))
    return blocks


def _swept(folder: Path, rates: Sequence[float], tokens: int, words: Sequence[str]) -> float:
    space = folder / "rates.py"
    space.write_text(SPACE.format(rates=rates, tokens=tokens, evaluations=EVALUATIONS))
    return _seconds(folder, "tune", str(space), f"sweep.folder={folder / 'sweep'}", *words)


def _alone(folder: Path, rate: float, tokens: int, words: Sequence[str]) -> float:
    config = load_run_config("quickstart", parse_overrides(words))
    every = math.ceil(tokens / (config.train.batch_size * config.data.block_size * EVALUATIONS))
    budget = [f"train.steps={every * EVALUATIONS}", f"train.evaluate_every={every}", f"train.optimizer.lr={rate}"]
    return _seconds(folder, "pretrain", "quickstart", f"run_dir={folder / str(rate)}", *budget, *words)


def _seconds(folder: Path, *words: str) -> float:
    """Wall time of `mlpt WORDS`, start of the process included."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mlpt", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise UserError(f"`mlpt {words[0]}` failed in the benchmark: {(done.stderr.strip() or 'no output')[-500:]}")
    return time.perf_counter() - begun


def _spans(sweep: Path) -> list[Span]:
    """The trials of a sweep, from the report that each writes when it ends."""
    spans = []
    for path in sweep.glob("trials/*/finished.json"):
        report, end = json.loads(path.read_text()), path.stat().st_mtime
        spans.append(Span(end - report["seconds"], end, report["busy_seconds"]))
    return spans
