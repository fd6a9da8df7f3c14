"""A study's folder as plain values: `study.json`, as far as the study has come."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlpt.errors import UserError
from mlpt.reporting.records import FolderReader

STUDY = "study.json"


@dataclass(frozen=True)
class Study:
    """values: what `mlpt.studies.results.collect` made."""

    place: str
    name: str
    values: Mapping[str, Any]

    def runs(self) -> list[Mapping[str, Any]]:
        """Every run of every cell."""
        return [run for cell in self.values["cells"].values() for run in cell["runs"].values()]


def is_study(place: FolderReader) -> bool:
    """True if the folder is one of `mlpt study` that has found something."""
    return place.read(STUDY) is not None


def read_study(name: str) -> Study:
    """The study in a folder, finished or under way. Raises `UserError` where its results cannot be read."""
    place = FolderReader(name)
    try:
        values = json.loads(place.read(STUDY) or b"")
        sound = isinstance(values, dict) and values.keys() >= {"cells", "comparisons", "question", "name"}
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"{place.name}/{STUDY} cannot be read; `mlpt study` makes it anew")
    return Study(place.name, str(values["name"]), values)
