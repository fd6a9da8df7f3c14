"""Where data lies: local paths and any fsspec URI, the user's cache directory, and errors of files as one line."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from mlpt.errors import UserError, one_line, reason


def cache_directory() -> Path:
    """The user's cache folder for mlpt: `$XDG_CACHE_HOME/mlpt`, else `~/.cache/mlpt`; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mlpt"


def filesystem(path: str, **options: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URI, and the path within it; `options` go to fsspec's class.

    Raises UserError for a protocol that fsspec doesn't know or whose package isn't installed.
    """
    try:
        return url_to_fs(os.path.expanduser(path), **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{path}: {one_line(error)}; use a local path or an installed fsspec protocol") from error


def is_local(filesystem_: fsspec.AbstractFileSystem) -> bool:
    """True if paths of this file system are paths of this machine (they can be memory-mapped)."""
    protocol = filesystem_.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def absolute(path: str) -> str:
    """A local path as an absolute one, which means the same in any process; a URI as it is."""
    fs, inner = filesystem(path)
    return inner if is_local(fs) else path


def file_sha256(path: str) -> str:
    """SHA-256 of a local file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_room(folder: str | os.PathLike[str]) -> None:
    """Raise the `OSError` of the system where 64 KiB more cannot be written to `folder`."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".room", buffering=0) as file:
        file.write(bytes(1 << 16))


@contextmanager
def readable_errors(path: str, doing: str) -> Iterator[None]:
    """Turn the OSError of an operation on `path` into one UserError line; `doing` is "read" or "write"."""
    try:
        yield
    except OSError as error:
        in_cache = os.path.abspath(path).startswith(os.path.abspath(cache_directory()))
        hint = "; mlpt's cache is there: set XDG_CACHE_HOME to a folder that you may write" if in_cache else ""
        raise UserError(f"cannot {doing} {path}: {reason(error)}{hint}") from error
