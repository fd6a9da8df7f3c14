"""What a study declares: its question, what is run and for how long, what is measured, and what is compared.

A declaration is a YAML file; docs/STUDIES.md shows one. Names of cells become names of folders.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mlpt.errors import UserError
from mlpt.settings import Settings, load_settings
from mlpt.studies.measurements import Measurement

WorkName = Literal["pretrain", "multitask", "prune"]
Expect = Literal["lower", "higher", "equal"]

_NAME = re.compile(r"[A-Za-z0-9][\w .=+@-]*")
_GRID_VALUE = (str, int, float, bool)


class Budget(Settings):
    """What every run may spend on training: one of steps, tokens and seconds.

    steps        optimiser steps (of all tasks together, in multi-task work).
    tokens       that go through training.
    seconds      of wall clock: training with its evaluations and all that meta-learning makes it wait for. A pilot of
                 each cell measures its steps a second, and its runs get the steps that fit.
    pilot_steps  of a pilot.
    """

    steps: int | None = Field(None, gt=0)
    tokens: int | None = Field(None, gt=0)
    seconds: float | None = Field(None, gt=0)
    pilot_steps: int = Field(200, gt=0)

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        if sum(value is not None for value in (self.steps, self.tokens, self.seconds)) != 1:
            raise ValueError("a budget is one of steps, tokens and seconds")
        return self

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.seconds:,g} seconds of training"
        return f"{self.steps:,} steps" if self.steps is not None else f"{self.tokens:,} tokens"


class Base(Settings):
    """What all cells have in common.

    work      what a run is: `pretrain`, `multitask` (`mlpt finetune --multitask`) or `prune`.
    recipe    of pretraining: a packaged one or a YAML file.
    settings  of that work, dotted or nested; for cells of the same work.
    """

    work: WorkName = "pretrain"
    recipe: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class Cell(Settings):
    """One thing that is compared: what it changes against the base.

    work      as in the base, if it is another one.
    recipe    instead of the base's.
    settings  laid on the base's.
    start     a cell whose model, of the same seed, this one starts from.
    grid      {setting: [values]} makes a cell of every combination; {setting: {name: value}} where values have no short
              name. Their names are `CELL setting=value`.
    apart     multi-task work: each task by itself, in a run of its own, with its share of the steps.
    budget    instead of the study's: for a cell that others start from.
    """

    work: WorkName | None = None
    recipe: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    start: str | None = None
    grid: dict[str, list[Any] | dict[str, Any]] = Field(default_factory=dict)
    apart: bool = False
    budget: Budget | None = None

    @field_validator("grid")
    @classmethod
    def _named_values(cls, grid: dict[str, list[Any] | dict[str, Any]]) -> dict[str, Any]:
        for key, values in grid.items():
            if not values:
                raise ValueError(f"the grid of {key} has no values")
            if isinstance(values, list) and not all(isinstance(value, _GRID_VALUE) for value in values):
                raise ValueError(f"the grid of {key} needs names for its values: {{name: value, ...}}")
        return grid


class Comparison(Settings):
    """A pair of cells, and what is expected of the first against the second.

    compare      [cell, cell it is compared with].
    measurement  by its name.
    expect       its value is lower or higher than the other's, or equal to it.
    margin       in the measurement's unit. lower, higher: by at least this much; a negative one tolerates that much of
                 the opposite ("no worse than"). equal: to within this.
    """

    compare: tuple[str, str]
    measurement: str
    expect: Expect
    margin: float = 0.0

    @model_validator(mode="after")
    def _sensible(self) -> "Comparison":
        if self.compare[0] == self.compare[1]:
            raise ValueError("a comparison needs two cells")
        if self.expect == "equal" and self.margin <= 0:
            raise ValueError("expect: equal needs a margin > 0, within which values count as equal")
        return self


_MOST_SEEDS = 10_000


class Correlation(Settings):
    """Of two measurements over all runs that have both, but for those of the cells `without`."""

    between: tuple[str, str]
    without: list[str] = Field(default_factory=list)


def listed_seeds(value: Any) -> Any:
    """A number of seeds means 0, 1, ..."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value > _MOST_SEEDS:
        raise ValueError(f"{value} seeds are more than {_MOST_SEEDS}; for that very seed write [{value}]")
    return list(range(value))


class Declaration(Settings):
    """A whole study.

    question      a sentence that ends with a question mark.
    seeds         a list, or how many.
    budget        of every run, equal for all cells; without one each cell's settings say how long it trains.
    decision      what will be done or believed upon which outcome, said before there is one.
    threads       CPU threads of a run. Sums depend on it, so it is part of the declaration.
    measurements  by name; one that is set to null is taken out.
    keep          of a run, once it is measured: `all`, `models` (no checkpoints), or `results` (neither).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str
    decision: str
    base: Base = Base()
    cells: dict[str, Cell] = Field(min_length=1)
    seeds: Annotated[list[int], BeforeValidator(listed_seeds)] = Field(min_length=1)
    budget: Budget | None = None
    measurements: dict[str, Measurement] = Field(min_length=1)
    comparisons: list[Comparison] = Field(default_factory=list)
    correlations: list[Correlation] = Field(default_factory=list)
    threads: int = Field(1, gt=0)
    keep: Literal["all", "models", "results"] = "all"

    @field_validator("cells", "measurements", mode="before")
    @classmethod
    def _one_by_one(cls, value: Any, info: Any) -> Any:
        """Errors name the cell; `UserError` goes through pydantic as it is."""
        if not isinstance(value, Mapping):
            return value
        kind: type[Settings] = Cell
        where = info.field_name
        if where == "measurements":
            kind, value = Measurement, {name: one for name, one in value.items() if one is not None}
        for name in value:
            if not isinstance(name, str):
                raise UserError(f"{where}: YAML reads a name as {name!r}; quote it, as in 'on' or '0.5'")
        return {name: load_settings(kind, _mapping(one, where, name), f"{where}.{name}") for name, one in value.items()}

    @field_validator("cells")
    @classmethod
    def _can_be_folders(cls, cells: dict[str, Cell]) -> dict[str, Cell]:
        for name in cells:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name '{name}' needs letters, digits, spaces and . = + @ - _ only")
        return cells

    @field_validator("question")
    @classmethod
    def _asks(cls, question: str) -> str:
        if not question.strip().endswith("?"):
            raise ValueError("ask a question, with its question mark")
        return " ".join(question.split())

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice")
        return seeds


def _mapping(value: Any, where: str, name: Any) -> Mapping[str, Any]:
    """`uniform:` with nothing behind it is a cell that changes nothing."""
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{where}.{name} needs settings of its own, as in {{key: value}} (got {value!r})")
    return value or {}
