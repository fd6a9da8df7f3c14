"""Running a declared study: check all of it, do what is left side by side, and keep the tables up to date."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mlpt.cores import available_cores
from mlpt.errors import UserError
from mlpt.outputs import STUDY, absolute, growing_folder, write_file, write_json
from mlpt.reporting.display import Display
from mlpt.reporting.text import say
from mlpt.stopping import Stopped, StopRequest
from mlpt.studies.children import Children, visible_gpus
from mlpt.studies.graph import Graph
from mlpt.studies.history import Declared, declare
from mlpt.studies.places import Places
from mlpt.studies.plan import Plan, Selection
from mlpt.studies.reading import Study
from mlpt.studies.results import collect
from mlpt.studies.table import markdown


def run_study(
    study: Study,
    out: Path,
    console: Console,
    *,
    cells: Sequence[str] = (),
    seeds: Sequence[int] = (),
    at_once: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run what is left of a study in the folder `out`; what was found, as in `out`/study.json.

    cells, seeds  the part to run; default: all.
    at_once       runs side by side; default: one a GPU, or as many as the CPU cores have threads for.
    Raises `UserError` for a study that could not run, before any of it does, and at the end where parts have failed;
    `Stopped` once a SIGINT or SIGTERM has ended what was under way, with checkpoints.
    """
    places = Places(absolute(out))
    plan = Plan(study, places)
    selection = Selection.of(study, cells, seeds)
    gpus = visible_gpus()
    width = at_once or len(gpus) or max(1, available_cores() // study.declared.threads)
    children = Children(study.declared.threads, [gpus[at % len(gpus)] for at in range(width)] if gpus else [])
    request = StopRequest(lambda text: say(text, console))
    try:
        with growing_folder(places.out, STUDY, overwrite), request.listening():
            declared = declare(study, places.out)
            with Display("auto", console) as display:
                plan.prepare(selection, display)
            graph = Graph(plan.tasks(selection, children), width)
            _Watch(plan, graph, declared, selection, console).run(children.stop)
    except Stopped as stopped:
        text = f"{request.name} has stopped the study in {places.out}; the same command goes on where it was"
        raise Stopped(stopped.number, text) from None
    results = collect(plan, declared, graph.failed)
    if graph.failed:
        first = next(iter(graph.failed))
        raise UserError(
            f"{len(graph.failed)} of {len(graph.tasks)} parts have failed, first {graph.tasks[first].name}: "
            f"{graph.failed[first]}; see {places.out / 'study.md'}; the same command tries them again"
        )
    return results


class _Watch:
    """Tells how far a study is, and writes its tables after each part."""

    def __init__(self, plan: Plan, graph: Graph, declared: Declared, selection: Selection, console: Console):
        self.plan = plan
        self.graph = graph
        self.declared = declared
        self.selection = selection
        self.console = console
        self.ended = 0

    def run(self, stop: Callable[[], None]) -> None:
        """Do all that is left."""
        count = len(self.graph.tasks)
        say(f"study: {self.plan.places.out}: {count} parts, {self.graph.at_once} side by side", self.console)
        self._write()
        self.graph.run(self._note, stop)

    def _note(self, key: Hashable) -> None:
        self.ended += 1
        task, reason = self.graph.tasks[key], self.graph.failed.get(key)
        how = "done" if reason is None else f"failed: {reason}"
        say(f"{task.name}: {how} ({self.ended} of {len(self.graph.tasks)})", self.console)
        self._write()
        for seed in self.selection.seeds:
            self.plan.clean(seed)

    def _write(self) -> None:
        results = collect(self.plan, self.declared, self.graph.failed)
        write_json(self.plan.places.out / "study.json", results)
        page = markdown(self.plan.study.declared, results)
        write_file(self.plan.places.out / "study.md", page.encode())
