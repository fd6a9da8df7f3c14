"""Options that several commands share."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mlpt import outputs

Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an earlier result of this command")]
JsonFile = Annotated[str | None, typer.Option("--json", help="also write the result to this new file")]


def json_file(place: str | None, overwrite: bool, *keys: str) -> Path | None:
    """The file of `--json`, checked before the work; `keys` tell an earlier result of the same command."""
    return result_file(place, overwrite, partial(outputs.is_json_of, keys=keys))


def result_file(place: str | None, overwrite: bool, is_ours: Callable[[Path], bool]) -> Path | None:
    """A file for a result, checked before the work; None where none was asked for."""
    return None if place is None else outputs.check_file(place, overwrite, is_ours)
