"""Paths as people write them, and why some cannot be written to."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mlpt.errors import UserError, one_line, reason

StrPath = str | os.PathLike[str]


def named(place: str) -> str:
    """`place`. Raises `UserError` for a name that no output can have."""
    if not place.strip():
        raise UserError("an empty path was given; name a folder or a file")
    if "\0" in place:
        raise UserError("a path cannot hold a zero byte; name another")
    return place


def expanded(place: StrPath) -> Path:
    """`place` with ~ resolved; as it is where that is somebody who does not exist, so that nothing is found there."""
    return Path(os.path.expanduser(place))


def absolute(place: StrPath) -> Path:
    """The absolute path of a file or folder, links and ~ resolved. Raises `UserError` for what is no path."""
    text = named(os.fspath(place))
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, or ~somebody who does not exist
        raise UserError(f"{text} is no path that can be used ({one_line(error)}); name another") from error


@contextlib.contextmanager
def said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def check_writable(path: Path) -> None:
    """Raise `OSError` or `UserError` where the folder `path`, there or not yet, could not be written."""
    existing = path
    while True:
        try:
            os.lstat(existing)
            break
        except (FileNotFoundError, NotADirectoryError):
            existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"cannot write {path}: {existing} is a file, not a folder; check the path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {existing} may not be written by you; choose another place")
