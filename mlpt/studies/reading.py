"""From the words of `mlpt study` to a declaration: a shipped study or a YAML file, and settings laid on it."""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mlpt.config import WHOLE
from mlpt.errors import UserError
from mlpt.outputs import expanded
from mlpt.run.local_paths import absolute_paths
from mlpt.settings import load_settings, merge, nested, parse_overrides
from mlpt.studies.declaration import Cell, Declaration
from mlpt.yaml_text import parse_yaml, read_yaml

OF_DECLARATION = (
    "budget",
    "cells",
    "measurements",
    "correlations",
    "seeds",
    "threads",
    "keep",
)  # words that are no settings of the runs
_PATH = re.compile(r"(\w+=)?(\.{1,2}/.*)", re.DOTALL)
_AMOUNTS = ("steps", "tokens", "seconds")


@dataclass(frozen=True)
class Study:
    """A declaration with its grids expanded, and the settings of the command line, which are laid on its base."""

    declared: Declaration
    given: dict[str, Any]

    @property
    def name(self) -> str:
        return self.declared.name

    def layers(self, cell: Cell) -> list[Mapping[str, Any]]:
        """The settings of a cell, to be laid on each other in this order."""
        base = self.declared.base
        shared = [nested(base.settings), self.given] if self.work(cell) == base.work else []
        return [*shared, nested(cell.settings)]

    def work(self, cell: Cell) -> str:
        """What the cell's runs are."""
        return cell.work or self.declared.base.work


def shipped_studies() -> Iterator[tuple[str, str]]:
    """The name and the question of each study that comes with mlpt."""
    for name in _shipped_names():
        yield name, " ".join(str(values_of(name)[0].get("question", "")).split())


def read_study(name: str, words: Iterable[str] = ()) -> Study:
    """The shipped study `name` or the one in the YAML file at that path, with `key=value` words laid on it.

    Texts that begin with ./ or ../ are paths from the file's folder. Raises `UserError` for an unknown study, bad YAML,
    unknown keys, and what does not fit together.
    """
    values, folder = values_of(name)
    values = values if folder is None else _anchored(values, folder)
    given = parse_overrides(words, whole=WHOLE)
    own = {key: given.pop(key) for key in OF_DECLARATION if key in given}
    values = merge(_making_room(values, own), own)
    declared = load_settings(Declaration, values)
    cells = dict(_expanded(declared.cells))
    declared = declared.model_copy(update={"cells": cells})
    _check_names(declared)
    return Study(declared, absolute_paths(given))


def _shipped_names() -> list[str]:
    files = [file.name for file in (resources.files("mlpt.studies") / "shipped").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def values_of(name: str) -> tuple[dict[str, Any], Path | None]:
    """The file's mapping, and its folder if it is not a shipped one."""
    path = expanded(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"there is no study file {name}")
        values, folder = read_yaml(path, name), path.resolve().parent
    else:
        names = _shipped_names()
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names)}, or give a .yaml file"
            raise UserError(f"there is no study '{name}'; {hint}")
        shipped = resources.files("mlpt.studies") / "shipped" / f"{name}.yaml"
        values, folder = parse_yaml(shipped.read_bytes(), name), None
    if not isinstance(values, dict):
        raise UserError(f"{name} declares no study: it is a YAML mapping with name, question, cells, ...")
    return values, folder


def _anchored(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _anchored(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [_anchored(one, folder) for one in value]
    found = _PATH.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else f"{found[1] or ''}{(folder / found[2]).resolve()}"


def _making_room(values: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without the amounts of a budget where `over` names another."""
    kept = dict(values)
    for key, value in over.items():
        there = kept.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            if key == "budget" and any(amount in value for amount in _AMOUNTS):
                kept[key] = {name: one for name, one in there.items() if name not in _AMOUNTS}
            else:
                kept[key] = _making_room(dict(there), value)
    return kept


def _expanded(cells: Mapping[str, Cell]) -> Iterator[tuple[str, Cell]]:
    """The cells, each with a grid as many without one."""
    for name, cell in cells.items():
        axes = [
            [(key, *_of_grid(value, values)) for value in values] for key, values in cell.grid.items()
        ]  # of (setting, name of the value, value)
        for point in itertools.product(*axes):
            settings = merge(nested(cell.settings), nested({key: value for key, _, value in point}))
            label = " ".join([name, *(f"{key.rpartition('.')[2]}={shown}" for key, shown, _ in point)])
            yield label, cell.model_copy(update={"grid": {}, "settings": settings} if point else {})


def _of_grid(value: Any, values: list[Any] | dict[str, Any]) -> tuple[str, Any]:
    """The name and the value of an entry of a grid."""
    return (str(value), values[value]) if isinstance(values, dict) else (_short(value), value)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_names(declared: Declaration) -> None:
    """Every cell and measurement that is named is there."""
    cells = list(declared.cells)
    _check_folders("cells", declared.cells)
    _check_folders("measurements", declared.measurements)
    for name, cell in declared.cells.items():
        if cell.start is not None:
            check_among(cell.start, cells, f"cells.{name}.start: there is no cell")
            if cell.start == name or declared.cells[cell.start].start is not None:
                raise UserError(f"cells.{name}.start: '{cell.start}' starts from a cell itself; name one that does not")
    for name, one in declared.measurements.items():
        for named in [*(one.cells or []), *([one.weights] if one.weights else [])]:
            check_among(named, cells, f"measurements.{name}: there is no cell")
    for number, one_pair in enumerate(declared.comparisons, 1):
        where = f"comparison {number}"
        for cell_name in one_pair.compare:
            check_among(cell_name, cells, f"{where}: there is no cell")
        check_among(one_pair.measurement, list(declared.measurements), f"{where}: there is no measurement")
        has = declared.measurements[one_pair.measurement].cells
        for cell_name in one_pair.compare:
            if has is not None and cell_name not in has:
                raise UserError(f"{where}: '{one_pair.measurement}' is not measured of '{cell_name}'")

    for one_correlation in declared.correlations:
        for measured in one_correlation.between:
            check_among(measured, list(declared.measurements), "correlations: there is no measurement")
        for cell_name in one_correlation.without:
            check_among(cell_name, cells, "correlations: there is no cell")


def _check_folders(what: str, names: Iterable[str]) -> None:
    folders: dict[str, str] = {}
    for name in names:
        other = folders.setdefault(folder_of(name), name)
        if other != name:
            raise UserError(f"{what} '{other}' and '{name}' would share the folder {folder_of(name)}; rename one")
        if not folder_of(name).strip(".-"):
            raise UserError(f"{what}: '{name}' is no name; use letters or digits")


def check_among(name: str, names: list[str], what: str) -> None:
    """Raise `UserError` with the nearest name unless `name` is one of `names`."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names)}"
        raise UserError(f"{what} '{name}'; {hint}")


def folder_of(name: str) -> str:
    """The folder of a cell or a measurement."""
    return re.sub(r"[^\w.=+@-]+", "-", name)
