"""What a study has to do: its runs, their pilots and the commands after them, each with what it waits for."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlpt.errors import UserError
from mlpt.reporting.display import Display
from mlpt.run.blocks import blocks_of
from mlpt.settings import Settings
from mlpt.studies.children import Children
from mlpt.studies.commands import Command, MasksOn
from mlpt.studies.graph import Task
from mlpt.studies.measurements import Measurement
from mlpt.studies.places import Places
from mlpt.studies.reading import Study, check_among
from mlpt.studies.values import why_not
from mlpt.studies.works import Pretraining, Words, works_of


@dataclass(frozen=True)
class Selection:
    """The cells and seeds that one call runs: all, or those that it names."""

    cells: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, study: Study, cells: Sequence[str], seeds: Sequence[int]) -> "Selection":
        """Raises `UserError` for a cell or seed that the study doesn't have."""
        declared = study.declared
        for name in cells:
            check_among(name, list(declared.cells), "--cells: there is no cell")
        for seed in seeds:
            if seed not in declared.seeds:
                valid = ", ".join(map(str, declared.seeds))
                raise UserError(f"--seeds: the study has no seed {seed}, but {valid}; add it to the file first")
        return cls(tuple(dict.fromkeys(cells or declared.cells)), tuple(dict.fromkeys(seeds or declared.seeds)))


class Plan:
    """The checked parts of a study. Making one raises `UserError` for whatever could not run."""

    def __init__(self, study: Study, places: Places):
        self.study = study
        self.places = places
        self.works = works_of(study, places)
        self.commands = dict(self._all_commands())
        self._check_values()
        self._blocks: dict[str, str] = {}  # cell -> its prepared blocks

    def prepare(self, selection: Selection, display: Display) -> None:
        """Prepare the text of all cells that will run, once for those that share it."""
        prepared: dict[str, str] = {}
        for name in self._with_starts(selection):
            work = self.works[name]
            if isinstance(work, Pretraining):
                config = work.before_blocks()
                key = _digest(config.data) if config.blocks is None else config.blocks
                if key not in prepared:
                    folder = self.places.out / "blocks" / _digest(config.data)
                    folder.mkdir(parents=True, exist_ok=True)
                    prepared[key] = blocks_of(config, folder, display)
                self._blocks[name] = prepared[key]

    def tasks(self, selection: Selection, children: Children) -> dict[Hashable, Task]:
        """What is to be done, seed by seed, so that a study that is cut short has whole seeds."""
        tasks: dict[Hashable, Task] = {}
        for seed in selection.seeds:
            for name in selection.cells:
                self._add_run(tasks, name, seed, children)
        return tasks

    def commands_of(self, cell: str) -> list[Command]:
        """The measurements of a cell that take commands."""
        return [command for (_, name), command in self.commands.items() if name == cell]

    def has(self, measurement: Measurement, cell: str) -> bool:
        """True if the declaration measures it of the cell."""
        return measurement.cells is None or cell in measurement.cells

    def clean(self, seed: int) -> None:
        """Remove what need not stay of a seed's runs, once all cells have theirs and all is measured of them."""
        runs = all(work.is_done(work.run(seed)) for work in self.works.values())
        if runs and all(command.is_done(seed) for command in self.commands.values()):
            for name, work in self.works.items():
                for folder in (work.run(seed), self.places.pilot(name)):
                    work.clean(folder, self.study.declared.keep)

    def _add_run(self, tasks: dict[Hashable, Task], name: str, seed: int, children: Children) -> None:
        work = self.works[name]
        key = ("run", name, seed)
        if key in tasks:
            return
        needs: list[Hashable] = []
        if work.cell.start is not None:
            self._add_run(tasks, work.cell.start, seed, children)
            needs.append(("run", work.cell.start, seed))
        blocks = self._blocks.get(name)
        if isinstance(work, Pretraining) and work.budget is not None and work.budget.seconds is not None:
            needs.append(self._add_pilot(tasks, work, blocks, children))
        folder = work.run(seed)
        act = _doing(lambda: work.commands(seed, blocks), self.places.log(folder), children)
        tasks[key] = Task(f"{name}, seed {seed}", act, tuple(needs))
        for command in self.commands_of(name):
            self._add_command(tasks, command, seed, children)

    def _add_pilot(
        self, tasks: dict[Hashable, Task], work: Pretraining, blocks: str | None, children: Children
    ) -> Hashable:
        key, first = ("pilot", work.name), self.study.declared.seeds[0]
        if key not in tasks:
            needs: tuple[Hashable, ...] = ()
            if work.cell.start is not None:
                self._add_run(tasks, work.cell.start, first, children)
                needs = (("run", work.cell.start, first),)
            log = self.places.log(self.places.pilot(work.name))
            act = _doing(lambda: work.pilot_commands(blocks), log, children)
            tasks[key] = Task(f"{work.name}, pilot", act, needs)
        return key

    def _add_command(self, tasks: dict[Hashable, Task], command: Command, seed: int, children: Children) -> None:
        cell = command.work.name
        needs: list[Hashable] = [("run", cell, seed)]
        if command.on is not command.work:
            self._add_run(tasks, command.on.name, seed, children)
            needs.append(("run", command.on.name, seed))
            masks = MasksOn(command.work, command.on, self.places)
            key = ("masks", command.on.name, cell, seed)
            log = self.places.log(masks.folder(seed))
            act = _doing(lambda: masks.commands(seed), log, children)
            tasks.setdefault(key, Task(f"masks of {cell}, seed {seed}", act, tuple(needs)))
            needs = [key]
        log = self.places.log(command.folder(seed))
        act = _doing(lambda: command.commands(seed), log, children)
        task = Task(f"{command.source} of {cell}, seed {seed}", act, tuple(needs))
        tasks["measure", command.source, cell, seed] = task

    def _with_starts(self, selection: Selection) -> Iterator[str]:
        """The cells that will run: those named, what they start from, and what is measured with them."""
        seen: set[str] = set()
        asked = list(selection.cells)
        while asked:
            name = asked.pop()
            if name not in seen:
                seen.add(name)
                start = self.works[name].cell.start
                asked += [start] if start is not None else []
                asked += [command.on.name for command in self.commands_of(name)]
        yield from (name for name in self.works if name in seen)

    def _all_commands(self) -> Iterator[tuple[tuple[str, str], Command]]:
        for name, measurement in self.study.declared.measurements.items():
            if not measurement.has_command:
                continue
            commands = [
                Command(name, measurement, work, self.works[measurement.weights or cell], self.places)
                for cell, work in self.works.items()
                if self.has(measurement, cell) and why_not(measurement, work) is None
            ]
            for command in commands[:1]:  # tasks and data are the same for all cells
                try:
                    command.check()
                except UserError as error:
                    raise UserError(f"measurement '{name}': {error}") from error
            yield from (((name, command.work.name), command) for command in commands)

    def _check_values(self) -> None:
        """Whatever is compared can be measured of both cells, and whatever is measured of at least one."""
        declared = self.study.declared
        for name, measurement in declared.measurements.items():
            asked = measurement.cells or list(self.works)
            reasons = [why_not(measurement, self.works[cell]) for cell in asked]
            if all(reasons) or (measurement.cells and any(reasons)):
                raise UserError(f"measurement '{name}': {next(filter(None, reasons))}")
        for number, comparison in enumerate(declared.comparisons, 1):
            for cell in comparison.compare:
                reason = why_not(declared.measurements[comparison.measurement], self.works[cell])
                if reason is not None:
                    raise UserError(f"comparison {number}: {comparison.measurement} of '{cell}': {reason}")


def _doing(commands: Callable[[], Iterable[Words]], log: Path, children: Children) -> Callable[[], None]:
    def act() -> None:
        for words in commands():
            children.run(words, log)

    return act


def _digest(settings: Settings) -> str:
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:12]
