"""A whole copy of what Ray Tune knows of a sweep.

Tune writes over its own files in place, so that a disk that is full leaves them cut short, and nothing to go on from.
"""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from ray import tune

from mlpt.outputs import write_file

_EVERY_S = 2.0  # Tune writes as often
_RESULTS = ("result.json", "progress.csv")  # a line a report, appended


class Keep(tune.Callback):
    """Copies the state of a phase while it is whole. Tune keeps it with the sweep, so it holds plain values."""

    def __init__(self, state: str):
        self._state = state
        self._again = 0.0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Make the copy, if it is time to. What there is no room for is left as it was."""
        if time.time() >= self._again:
            with contextlib.suppress(OSError):
                keep(Path(self._state))
            self._again = time.time() + _EVERY_S


def keep(state: Path) -> None:
    """Replace the copy of the folder `state` by what is there now, unless that is damaged."""
    kept = _kept(state)
    fresh, old = (kept.with_name(f"{kept.name}.{name}") for name in ("partial", "old"))
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    fresh.mkdir()
    for path in _files(state):
        shutil.copyfile(path, fresh / path.name)
    if is_whole(fresh):
        if kept.exists():
            kept.rename(old)
        fresh.rename(kept)
    shutil.rmtree(old, ignore_errors=True)


def mend(state: Path) -> None:
    """Make `state` one to go on from, where it was cut short: as the copy has it, or, without any, not there.

    Trials that began after the copy was made begin again, in grids and random searches by their old names: they find
    their folders, and what they finished is reported.
    """
    for name in _RESULTS:
        for path in state.glob(f"*/{name}"):
            _cut_to_lines(path)
    if not state.exists() or is_whole(state):
        return
    if not _kept(state).is_dir():
        shutil.rmtree(state)
        return
    for path in _files(state):
        path.unlink()
    for path in _files(_kept(state)):
        write_file(state / path.name, path.read_bytes())


def is_whole(state: Path) -> bool:
    """Whether all files directly in a folder of Tune's can be read to their ends, and it has those that it needs."""
    files = _files(state)
    names = [path.name for path in files]
    needed = "tuner.pkl" in names and any(name.startswith("experiment_state") for name in names)
    return needed and all(map(_is_whole_file, files))


def _is_whole_file(path: Path) -> bool:
    content = path.read_bytes()
    if not content.startswith(b"{"):
        return content.endswith(b".")  # the last byte of every pickle, which some of Tune's .json are
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.is_file() and path.suffix in (".json", ".pkl")]


def _kept(state: Path) -> Path:
    return state.with_name(f".{state.name}.kept")


def _cut_to_lines(path: Path) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
