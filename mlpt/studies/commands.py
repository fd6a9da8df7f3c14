"""The measurements that take a command after the run: which one, where it leaves its figures, and reading them."""

import hashlib
import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlpt.downstream.command import tasks_of_files
from mlpt.downstream.config import FinetuneConfig, cells
from mlpt.downstream.finetune import read_task
from mlpt.downstream.results import CellResult, best_rate
from mlpt.downstream.suites import build_suites, choose_suites
from mlpt.errors import UserError
from mlpt.outputs import read_json, write_file
from mlpt.settings import load_settings, merge
from mlpt.studies.measurements import Evaluated, Finetuned, Losses, Measurement
from mlpt.studies.places import Places
from mlpt.studies.works import Words, Work

_FIGURES = "figures.json"


@dataclass(frozen=True)
class Command:
    """A measurement `name` by a command, of the runs of the cell behind `work`."""

    name: str
    measurement: Measurement
    work: Work
    on: Work  # whose weights are measured
    places: Places

    @property
    def source(self) -> str:
        """What the command measures: the same for measurements that read different lines of one result."""
        if self.measurement.losses is not None:
            weights = "own weights" if self.on is self.work else self.on.name
            return f"losses on {weights}, {self.measurement.losses.batches} batches"
        if self.measurement.evaluate is not None:
            asked = self.measurement.evaluate.model_dump_json(include={"suite", "settings"})
            suite = self.measurement.evaluate.suite.partition("=")[0].replace(":", ".")
            return f"{suite} {hashlib.sha256(asked.encode()).hexdigest()[:8]}"
        return self.name

    def folder(self, seed: int) -> Path:
        return self.places.measured(self.source, self.work.name, seed)

    def check(self) -> None:
        """Raise `UserError` where the data, the tasks or the settings could not be used."""
        if self.measurement.finetune is not None:
            config = load_settings(FinetuneConfig, self._finetuning(self.measurement.finetune, 0))
            for task in config.tasks:
                read_task(config, task)
        elif self.measurement.evaluate is not None:
            build_suites(choose_suites([self.measurement.evaluate.suite]), self._suite_words(self.measurement.evaluate))

    def is_done(self, seed: int) -> bool:
        figures = self._figures(seed)
        if self.measurement.finetune is None or not figures.is_file():
            return figures.is_file()
        # Its results are written after each cell of the grid.
        found = {(one["task"], one["learning_rate"], one["seed"]) for one in read_json(figures)["cells"]}
        grid = cells(load_settings(FinetuneConfig, self._finetuning(self.measurement.finetune, seed)))
        return all((cell.task, cell.learning_rate, cell.seed) in found for cell in grid)

    def commands(self, seed: int) -> Iterator[Words]:
        """What is left to do."""
        if self.is_done(seed):
            return
        folder = self.folder(seed)
        if self.measurement.finetune is not None:  # goes on where it was
            yield ["finetune", self._asked(seed, self._finetuning(self.measurement.finetune, seed))]
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        unfinished = folder / f"{_FIGURES}.unfinished"
        if self.measurement.evaluate is not None:
            asked, settings = self.measurement.evaluate, []
            for word in self._suite_words(asked):
                settings += ["--set", word]
            yield ["evaluate", str(self._model(seed)), "--suite", asked.suite, *settings, "--json", str(unfinished)]
        elif self.measurement.losses is not None:
            yield from self._losses(self.measurement.losses, seed, unfinished)
        unfinished.replace(folder / _FIGURES)

    def value(self, seed: int) -> float:
        """The number that was measured. Raises `UserError` where the figures have no such line."""
        figures = read_json(self._figures(seed))
        if self.measurement.finetune is not None:
            return _of_finetuning(figures, self.measurement.finetune)
        if self.measurement.evaluate is not None:
            return _of_suite(figures, self.measurement.evaluate)
        assert self.measurement.losses is not None
        return float(figures[self.measurement.losses.figure])

    def _figures(self, seed: int) -> Path:
        return self.folder(seed) / ("results.json" if self.measurement.finetune is not None else _FIGURES)

    def _model(self, seed: int) -> Path:
        return self.on.run(seed) / "model"

    def _asked(self, seed: int, values: Mapping[str, Any]) -> str:
        file = self.places.asked(self.folder(seed))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, yaml.safe_dump(values, sort_keys=False).encode())
        return str(file)

    def _finetuning(self, asked: Finetuned, seed: int) -> dict[str, Any]:
        own = tasks_of_files(asked.files)
        values: dict[str, Any] = {"keep_model": "none", "predict_test": False}
        values = merge(merge(values, own), asked.settings)
        values["tasks"] = [*asked.tasks, *own.get("tasks", [])]
        if asked.data_dir is not None:
            values = merge(values, {"source": {"data_dir": asked.data_dir}})
        values |= {"model": str(self._model(seed)), "seeds": [seed], "out": str(self.folder(seed))}
        if self._has_own_masks():
            values["masks"] = str(_masks_of_on(self.places, self, seed))
        return values

    def _has_own_masks(self) -> bool:
        return self.on is not self.work

    def _suite_words(self, asked: Evaluated) -> list[str]:
        (chosen,) = choose_suites([asked.suite])
        return [f"{chosen.name}.{key}={value}" for key, value in asked.settings.items()]

    def _losses(self, asked: Losses, seed: int, file: Path) -> Iterator[Words]:
        masks: list[str] = []
        if self._has_own_masks():
            masks = ["--masks", str(_masks_of_on(self.places, self, seed))]
        run = str(self.on.run(seed))  # its blocks are the run's
        yield ["evaluate", run, *masks, "--batches", str(asked.batches), "--json", str(file)]


@dataclass(frozen=True)
class MasksOn:
    """The masks of a cell as masks of another cell's weights: what trained along with them stays behind."""

    work: Work
    on: Work
    places: Places

    def folder(self, seed: int) -> Path:
        return self.places.measured(f"masks-on-{self.on.name}", self.work.name, seed)

    def is_done(self, seed: int) -> bool:
        return (self.folder(seed) / "masks.safetensors").is_file()

    def commands(self, seed: int) -> Iterator[Words]:
        """What is left to do."""
        if not self.is_done(seed):
            shutil.rmtree(self.folder(seed), ignore_errors=True)
            model = str(self.on.run(seed) / "model")
            masks, out = str(self.work.masks(seed)), str(self.folder(seed))
            yield ["masks", "convert", masks, out, "--model", model, "--another-base"]


def _masks_of_on(places: Places, command: Command, seed: int) -> Path:
    return MasksOn(command.work, command.on, places).folder(seed) / "masks.safetensors"


def _of_finetuning(figures: Mapping[str, Any], asked: Finetuned) -> float:
    """The mean over tasks of the selecting metric on its dev split, at the rate that was best."""
    of_task: dict[str, list[CellResult]] = {}
    for one in figures["cells"]:
        of_task.setdefault(one["task"], []).append(CellResult.from_json(one))
    scores = []
    for results in of_task.values():
        rate = best_rate(results)
        (chosen,) = [result for result in results if result.learning_rate == rate]
        splits = getattr(chosen, asked.which)
        scores.append(splits[chosen.select_split or next(iter(splits))][chosen.metric])
    return statistics.fmean(scores)


def _of_suite(figures: Mapping[str, Any], asked: Evaluated) -> float:
    (result,) = figures["suites"].values()
    (model,) = result["models"].values()
    named = [line for line in model["lines"] if line["name"] == asked.name or line["level"] == asked.name]
    found = [line for line in named if asked.metric in (None, line["metric"])]
    if not found:
        there = sorted({f"{line['name']} ({line['metric']})" for line in model["lines"]})
        raise UserError(f"suite {asked.suite} has no line '{asked.name}'; it has {', '.join(there[:8])}, ...")
    return float(found[0]["value"])
