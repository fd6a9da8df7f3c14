"""The rule for files: a new one, or with `--overwrite` an earlier result of the same command."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mlpt.errors import UserError, one_line
from mlpt.outputs.places import StrPath, absolute, check_writable, said


def check_file(place: StrPath, overwrite: bool = False, is_ours: Callable[[Path], bool] = lambda path: False) -> Path:
    """The absolute path of a file that may be written; nothing is made or changed.

    is_ours  whether a file is an earlier result of the same kind, which alone may be overwritten.
    Raises `UserError` for a folder, a file that is there, and a folder that is missing or cannot be written.
    """
    path = absolute(place)
    with said(path):
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file in it")
        if path.exists():
            if not overwrite:
                raise UserError(f"{path} exists; name a new file, or replace it with --overwrite")
            if not path.is_file() or not is_ours(path):
                raise UserError(f"{path} is no earlier result of this command, so it stays; name a new file")
        if not path.parent.exists():
            raise UserError(f"there is no folder {path.parent} for {path.name}; make it, or name another file")
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}: {path.parent} is a file, not a folder; check the path")
        check_writable(path.parent)
    return path


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises `UserError` where it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); put a whole copy back, or begin anew") from error


def is_json_of(path: Path, keys: Sequence[str]) -> bool:
    """True if `path` holds JSON whose object, or first object of its list, has all of `keys`."""
    try:
        value = read_json(path)
    except (OSError, UserError):
        return False
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and all(key in first for key in keys)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_file(path, (json.dumps(value, indent=1) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file, or leave the one that was there. Raises `OSError`."""
    with new_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """The same for a file that is written in pieces: it is there when the block has ended well. Raises `OSError`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
