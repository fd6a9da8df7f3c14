"""Running the two-moons study: all cells forward together, chunk by chunk, then finetuning, tables and the picture."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from mlpt.errors import UserError
from mlpt.outputs import MOONS, absolute, growing_folder, write_file, write_json
from mlpt.stopping import Stopped, StopRequest
from mlpt.studies.moons.declaration import MoonsStudy
from mlpt.studies.moons.finetuning import finetune
from mlpt.studies.moons.page import markdown
from mlpt.studies.moons.picture import sheet
from mlpt.studies.moons.pretraining import CellRuns, student_at
from mlpt.studies.moons.rows import Rows
from mlpt.studies.moons.shares import pretrain
from mlpt.yaml_text import read_yaml

Say = Callable[[str], None]
_GROWS = {"steps"}  # what a study that is continued may have more of


def run_moons(
    study: MoonsStudy, out: Path, say: Say, cells: Sequence[str] = (), overwrite: bool = False, cores: int = 1
) -> dict[str, Any]:
    """Run what is left of the study in the folder `out`; what was found, as in `out`/results.json.

    cells  the cells to run; default: all. Tables and picture have all that are finished.
    cores  processes that pretrain side by side.
    Raises `UserError` for a folder with another declaration, `Stopped` once a signal has ended it, with all of it kept.
    """
    for name in cells:
        if name not in study.cells:
            raise UserError(f"there is no cell '{name}'; there are {', '.join(study.cells)}")
    out = absolute(out)
    torch.set_num_threads(1)
    request = StopRequest(say)
    with growing_folder(out, MOONS, overwrite), request.listening():
        _declare(study, out)
        rows = Rows(study.vocabulary)
        chosen = [name for name in study.cells if not cells or name in cells]
        groups = [CellRuns(study, name, rows, out / "cells") for name in chosen]
        told = _Progress(study, groups, say)
        with request.training():
            pretrain(study, groups, cores, request, told.more)
        if request():
            raise Stopped(request.number, "stopped; the same command goes on where it was")
        results = _finetune(study, _finished(study, groups, rows, out), rows, out, say)
    return results


def _finished(study: MoonsStudy, groups: Sequence[CellRuns], rows: Rows, out: Path) -> list[CellRuns]:
    """The cells of this call, and those that earlier calls have brought to the end, in the declaration's order."""
    here = {one.cell: one for one in groups}
    found = []
    for name in study.cells:
        group = here.get(name)
        if group is None and CellRuns.saved(out / "cells", name).is_file():
            group = CellRuns(study, name, rows, out / "cells")
        if group is not None and group.steps >= study.steps:
            found.append(group)
    return found


class _Progress:
    """Says how far all groups are, each time that another hundredth is done."""

    def __init__(self, study: MoonsStudy, groups: Sequence[CellRuns], say: Say):
        self._total = sum(len(group.models) for group in groups) * study.steps
        self._before = self._done = sum(len(group.models) * min(group.steps, study.steps) for group in groups)
        self._started, self._say, self._said = time.monotonic(), say, 0

    def more(self, count: int) -> None:
        """So many micro-batches more."""
        self._done += count
        percent = 100 * self._done // self._total
        if percent > self._said:
            rate = (self._done - self._before) / (time.monotonic() - self._started)
            self._say(f"{percent} % of the steps; {rate:.0f} micro-batches a second")
            self._said = percent


def _finetune(study: MoonsStudy, groups: Sequence[CellRuns], rows: Rows, out: Path, say: Say) -> dict[str, Any]:
    found: dict[str, dict[int, dict[str, list[float]]]] = {one.cell: {} for one in groups}
    maps: dict[str, dict[int, Any]] = {one.cell: {} for one in groups}
    for labels in study.labels:
        here = [one for one in groups if labels in study.labels_of(one.cell)]
        students, seeds = [], []
        for group in here:
            students += [student_at(weights, study, rows) for weights in group.students(labels)]
            seeds += study.seeds
        if not students:
            continue
        result = finetune(study, students, seeds, labels, rows)
        for place, name in enumerate(one.cell for one in here):
            part = slice(place * len(study.seeds), (place + 1) * len(study.seeds))
            found[name][labels] = {"last": result.last[part], "best": result.best[part]}
            share = (result.maps[part] > 0).double().mean(0)
            maps[name][labels] = share.view(64, 64).numpy()
        say(f"{labels} labels: finetuned {len(students)} students")
    trained_on = {labels: rows.points(labels, "train") for labels in study.labels}
    points = {n: torch.cat([one.places, one.moons.unsqueeze(1)], 1).numpy() for n, one in trained_on.items()}
    write_file(out / "maps.png", sheet(maps, points, study.labels))
    histories = {one.cell: one.history for one in groups}
    results = {"study": study.model_dump(), "accuracy": found, "history": histories}
    write_json(out / "results.json", results)
    write_file(out / "study.md", markdown(study, found, histories).encode())
    return results


def _declare(study: MoonsStudy, out: Path) -> None:
    """Keep the declaration in the folder. What was declared stays; steps, and cells, may be added."""
    file = out / "declared.yaml"
    now = json.loads(study.model_dump_json())
    if file.is_file():
        before = read_yaml(file)
        for key, value in before.items():
            same = now[key] == value
            if key == "cells":  # others may be added
                same = all(now["cells"].get(one) == how for one, how in value.items())
            more = key in _GROWS and now[key] >= value
            if not same and not more and key != "save_every":
                raise UserError(
                    f"{out} holds a study with another '{key}'; take another folder (--out), or --overwrite"
                )
    write_file(file, yaml.safe_dump(now, sort_keys=False).encode())
