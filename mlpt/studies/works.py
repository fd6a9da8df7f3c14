"""The kinds of work that a cell's runs can be: their configuration, the commands that do them, and what these leave."""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mlpt.config import RunConfig, load_run_config
from mlpt.data.manifest import read_manifest
from mlpt.downstream.config import FinetuneConfig
from mlpt.downstream.finetune import read_task
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.errors import UserError
from mlpt.outputs import read_json, write_file
from mlpt.settings import Settings, load_settings, merge, nested
from mlpt.storage.checkpoint import Checkpoints
from mlpt.studies.declaration import Budget, Cell
from mlpt.studies.places import Places
from mlpt.studies.reading import Study

Words = list[str]  # of one `mlpt` command


@dataclass(frozen=True)
class Work(ABC):
    """The runs of one cell."""

    study: Study
    name: str
    cell: Cell
    places: Places

    @property
    def budget(self) -> Budget | None:
        """What each run may spend."""
        return self.cell.budget or self.study.declared.budget

    def run(self, seed: int) -> Path:
        """The folder of a run."""
        return self.places.run(self.name, seed)

    def start(self, seed: int) -> str | None:
        """The model that a run starts from, if the cell names one."""
        return None if self.cell.start is None else str(self.places.run(self.cell.start, seed) / "model")

    @abstractmethod
    def check(self) -> None:
        """Raise `UserError` for settings with which no run could begin."""

    @abstractmethod
    def commands(self, seed: int, blocks: str | None) -> Iterator[Words]:
        """What is left to do of a run, one command after another; nothing of a finished one."""

    @abstractmethod
    def result(self, folder: Path) -> dict[str, Any]:
        """The summary of the finished run in `folder`."""

    def is_done(self, folder: Path) -> bool:
        """True for the folder of a finished run."""
        return (folder / "summary.json").is_file()

    @property
    def makes_masks(self) -> bool:
        """True if its runs leave masks."""
        return False

    def masks(self, seed: int) -> Path:
        """Where a run leaves its masks, if it makes any."""
        return self.run(seed) / "model"

    def clean(self, folder: Path, keep: Literal["all", "models", "results"]) -> None:
        """Remove what need not stay of a finished and measured run."""
        gone = {"all": [], "models": ["checkpoints"], "results": ["checkpoints", "model", "models"]}[keep]
        for name in gone:
            shutil.rmtree(folder / name, ignore_errors=True)

    def _asked(self, folder: Path, config: Settings) -> str:
        """The file in which `config` is handed to a command."""
        file = self.places.asked(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, config.to_yaml().encode())
        return str(file)


class Pretraining(Work):
    """`mlpt pretrain`, in one process."""

    def check(self) -> None:
        for layer in self._layers():
            refuse(layer, ("seed", "run_dir", "name", "runtime"), "the study sets it")
            if self.budget is not None:
                refuse(layer, ("train.steps", "train.tokens"), "the budget says how long runs are; set budget.*")
        self.config(0, self.run(0), self.steps_of_pilot() if self._is_timed() else None)

    def config(self, seed: int, folder: Path, steps: int | None = None, blocks: str | None = None) -> RunConfig:
        """The whole configuration of a run; `steps` instead of the budget's, `blocks` once they are prepared."""
        budget = self.budget
        length: dict[str, Any] = {}
        if steps is not None or (budget is not None and budget.steps is not None):
            length = {"train": {"steps": steps or (budget and budget.steps), "tokens": None}}
        elif budget is not None and budget.tokens is not None:
            length = {"train": {"tokens": budget.tokens}}
        start = self.start(seed)
        own = {
            "name": self.study.name,
            "seed": seed,
            "run_dir": str(folder),
            "runtime": {"num_workers": 0, "cpus_per_worker": self.study.declared.threads},
        }
        model = {} if start is None else {"model": {"pretrained": start}}
        quiet = {"report": {"progress": "lines", "tensorboard": False}}
        config = load_run_config(self._recipe, quiet, *self._layers(), model, length, own)
        if blocks is None:
            return config
        # What the blocks are made of, not what the model that is there by now would have them made with.
        data = self.before_start().data
        is_source = len(data.places) == 1 and read_manifest(data.places[0]) is not None
        return config.model_copy(update={"data": data, "blocks": None if is_source else blocks})

    def before_start(self) -> RunConfig:
        """The configuration of a run but for its seed, its length, and the model that it starts from."""
        return load_run_config(self._recipe, *self._layers())

    @property
    def makes_masks(self) -> bool:
        return self.before_start().masks is not None

    def before_blocks(self) -> RunConfig:
        """The configuration that says what text is prepared, and how. A model that a run starts from is not there yet;
        it will have the tokenizer of these very blocks."""
        config = self.before_start()
        return config if self.cell.start is None else RunConfig(data=config.data, blocks=config.blocks)

    def commands(self, seed: int, blocks: str | None) -> Iterator[Words]:
        steps = self.steps_that_fit() if self._is_timed() else None
        yield from self._until_done(seed, self.run(seed), steps, blocks)

    def pilot_commands(self, blocks: str | None) -> Iterator[Words]:
        """What is left to do of the run that measures the cell's speed."""
        seed = self.study.declared.seeds[0]
        yield from self._until_done(seed, self.places.pilot(self.name), self.steps_of_pilot(), blocks)

    def steps_of_pilot(self) -> int:
        """The length of a pilot."""
        return self.budget.pilot_steps if self.budget is not None else 1

    def steps_that_fit(self) -> int:
        """Into the budget's seconds, as the pilot has measured."""
        pilot = self.result(self.places.pilot(self.name))
        seconds = self.budget.seconds if self.budget is not None else None
        return max(1, round((seconds or 0) * pilot["steps"] / pilot["seconds"]))

    def _is_timed(self) -> bool:
        return self.budget is not None and self.budget.seconds is not None

    def result(self, folder: Path) -> dict[str, Any]:
        summary: dict[str, Any] = read_json(folder / "summary.json")
        return summary

    @property
    def _recipe(self) -> str | None:
        return self.cell.recipe or self.study.declared.base.recipe

    def _layers(self) -> list[Mapping[str, Any]]:
        return self.study.layers(self.cell)

    def _until_done(self, seed: int, folder: Path, steps: int | None, blocks: str | None) -> Iterator[Words]:
        if self.is_done(folder):
            return
        if (folder / "config.yaml").is_file() and Checkpoints(folder / "checkpoints").steps():
            yield ["pretrain", "--resume", str(folder)]
            return
        shutil.rmtree(folder, ignore_errors=True)  # a start that left nothing to go on from
        yield ["pretrain", self._asked(folder, self.config(seed, folder, steps, blocks))]


class Multitask(Work):
    """`mlpt finetune --multitask`; with `apart` one run a task, each with its share of the steps."""

    def check(self) -> None:
        for layer in self.study.layers(self.cell):
            refuse(layer, ("seed", "out"), "the study sets it")
            if self.budget is not None:
                refuse(layer, ("max_steps", "epochs"), "the budget says how long runs are; set budget.*")
        if self.budget is not None and self.budget.steps is None:
            raise UserError("multi-task work takes a budget of steps")
        whole = self._whole(0)
        if self.cell.apart and whole.max_steps is not None and whole.max_steps < len(whole.tasks):
            raise UserError(f"{whole.max_steps} steps are not one for each of {len(whole.tasks)} tasks")
        for task in whole.tasks:
            read_task(FinetuneConfig(model=whole.model, tasks=whole.tasks, source=whole.source), task)

    def commands(self, seed: int, blocks: str | None) -> Iterator[Words]:
        for config, folder in self._configs(seed):
            if not (folder / "results.json").is_file():
                yield ["finetune", self._asked(folder, config), "--multitask"]

    def is_done(self, folder: Path) -> bool:
        return all((one / "results.json").is_file() for one in self._folders(folder))

    def clean(self, folder: Path, keep: Literal["all", "models", "results"]) -> None:
        for one in self._folders(folder):
            super().clean(one, keep)

    def result(self, folder: Path) -> dict[str, Any]:
        """Of runs apart: the scores of all tasks, and the sums of what they took."""
        found = [read_json(one / "results.json") for one in self._folders(folder)]
        whole: dict[str, Any] = found[0]
        for other in found[1:]:
            added = {key: whole[key] + other[key] for key in ("steps", "seconds")}
            joined = {
                key: whole[key] | other[key] for key in ("best", "last", "running_best", "majority", "selects", "rows")
            }
            whole = {**whole, **joined, **added, "warnings": whole["warnings"] + other["warnings"]}
        return whole

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        return self._whole(0).tasks

    def _folders(self, folder: Path) -> list[Path]:
        return [folder / task for task in self.tasks] if self.cell.apart else [folder]

    def _whole(self, seed: int) -> MultitaskConfig:
        start = self.start(seed)
        forced: dict[str, Any] = {"seed": seed, "out": str(self.run(seed))}
        forced |= {} if start is None else {"model": start}
        if self.budget is not None:
            forced["max_steps"] = self.budget.steps
        values: dict[str, Any] = {
            "keep_model": "none",
            "predict_test": False,
            "feature_cache": str(self.places.out / "features"),
        }
        for layer in [*self.study.layers(self.cell), forced]:
            values = merge(values, layer)
        return load_settings(MultitaskConfig, values)

    def _configs(self, seed: int) -> list[tuple[MultitaskConfig, Path]]:
        whole = self._whole(seed)
        if not self.cell.apart:
            return [(whole, self.run(seed))]
        count, made = len(whole.tasks), []
        for task in whole.tasks:
            folder = self.run(seed) / task
            shares = {
                key: max(1, value // count)
                for key in ("max_steps", "evaluate_every")
                if (value := getattr(whole, key)) is not None
            }
            made.append((whole.model_copy(update={"tasks": (task,), "out": str(folder), **shares}), folder))
        return made


class PruneConfig(Settings):
    """What `mlpt prune` is told. `modules`: tamt, encoder, or a regular expression over module names."""

    method: Literal["magnitude", "random"] = "magnitude"
    sparsity: float = Field(ge=0, lt=1)
    scope: Literal["local", "global"] = "local"
    modules: str = "tamt"


class Pruning(Work):
    """`mlpt prune` of the model that the cell starts from."""

    def check(self) -> None:
        self._config()
        if self.cell.start is None:
            raise UserError("work: prune needs a cell to start from; name it by start")

    def commands(self, seed: int, blocks: str | None) -> Iterator[Words]:
        folder, config = self.run(seed), self._config()
        if self.is_done(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)
        options = [f"--{name}={value}" for name, value in config.model_dump().items()]
        yield ["prune", str(self.start(seed)), *options, f"--seed={seed}", f"--out={folder}"]

    def is_done(self, folder: Path) -> bool:
        return (folder / "masks.safetensors").is_file()

    def result(self, folder: Path) -> dict[str, Any]:
        described: dict[str, Any] = read_json(folder / "sparsity.json")
        return described

    @property
    def makes_masks(self) -> bool:
        return True

    def masks(self, seed: int) -> Path:
        return self.run(seed)

    def _config(self) -> PruneConfig:
        values: dict[str, Any] = {}
        for layer in self.study.layers(self.cell):
            values = merge(values, layer)
        return load_settings(PruneConfig, values)


WORKS: dict[str, type[Work]] = {"pretrain": Pretraining, "multitask": Multitask, "prune": Pruning}


def works_of(study: Study, places: Places) -> dict[str, Work]:
    """The cells' work, checked. Raises `UserError` that names the cell."""
    works: dict[str, Work] = {}
    for name, cell in study.declared.cells.items():
        kind = study.work(cell)
        works[name] = WORKS[kind](study, name, cell, places)
        try:
            if cell.apart and kind != "multitask":
                raise UserError("apart belongs to work: multitask")
            works[name].check()
        except UserError as error:
            raise UserError(f"cell '{name}': {error}") from error
    return works


def refuse(layer: Mapping[str, Any], keys: tuple[str, ...], why: str) -> None:
    """Raise `UserError` where the settings `layer` say something of one of the dotted `keys`."""
    for key in keys:
        found: Any = nested(layer)
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is not None:
            raise UserError(f"leave out {key}={json.dumps(found)}: {why}")
