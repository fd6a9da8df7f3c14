"""Ten cells of the two-moons study with teachers, side by side against one at a time, in micro-batches a second.

Hard and soft steps of MetaLMO (Shen, 2021) on the study's own texts and points, all 407 tokens, dropout on. Both sides
are the same recorded step, for ten students and teachers at once or for one; where there is a compiler the ten are
compiled too. Seconds are of the processor: one thread, whatever else the machine does.
"""

import time
from collections.abc import Callable, Sequence

import torch

from mlpt.bench.harness import Row, machine, peak_bytes, seconds_interleaved
from mlpt.models.teacher import build_student, build_teacher
from mlpt.objectives.networks import NetworkConfig
from mlpt.studies.moons.pretraining import ADAMW, MAX_NORM
from mlpt.studies.moons.rows import Batches, Rows
from mlpt.training.compiling import why_not_compile
from mlpt.training.many import Mode
from mlpt.training.many_teachers import ManyTaught, Taught

CELLS, STEPS, TEXTS = 10, 5, 4
SIZES = NetworkConfig(hidden_size=8, heads=2, intermediate_size=32, layers=2, positions=34, attention="eager")
RATE = 1e-3


def run(rules: Sequence[str] = ("hard", "soft")) -> list[Row]:
    """A row for each rule and way of running the step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = Rows()
        return [row for rule in rules for row in _rows(rule, rows)]
    finally:
        torch.set_num_threads(threads)


def trained(rule: str, cells: int, rows: Rows, mode: Mode) -> Callable[[], object]:
    """A function that trains so many students and teachers for STEPS steps."""
    how = Taught(
        "soft" if rule == "soft" else "hard",
        meta_weight=100.0 if rule == "soft" else 1.0,
        max_norm=MAX_NORM,
        **ADAMW,  # type: ignore[arg-type]
    )
    students = [build_student(SIZES, rows.vocabulary, seed) for seed in range(cells)]
    teachers = [build_teacher(SIZES, rows.vocabulary, seed) for seed in range(cells)]
    many = ManyTaught(students, teachers, how, rows.vocabulary.mask, mode)
    batches = Batches(rows, [(20, seed) for seed in range(cells)], TEXTS, TEXTS, query_share=0.0, mlm=False)
    made = [batches.taught(step) for step in range(STEPS)]

    def steps() -> None:
        for step, batch in enumerate(made):
            many.step(batch, RATE, seed=step)

    return steps


def _rows(rule: str, rows: Rows) -> list[Row]:
    modes: list[Mode] = ["recorded"] if why_not_compile(torch.device("cpu")) else ["recorded", "compiled"]
    together = [trained(rule, CELLS, rows, mode) for mode in modes]
    alone = trained(rule, 1, rows, "recorded")
    *ours, peer = seconds_interleaved(*together, alone, rounds=7, clock=time.process_time)
    return [
        Row(
            "teacher",
            f"{rule} teachers, {CELLS} cells side by side against one at a time, {mode}",
            CELLS * STEPS / own,
            STEPS / peer,
            CELLS * peer / own,
            "micro-batches a CPU-second",
            peak_bytes(),
            machine(),
        )
        for mode, own in zip(modes, ours, strict=True)
    ]
