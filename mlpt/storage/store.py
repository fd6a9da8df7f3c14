"""A folder behind a URI (S3, GCS, anything fsspec knows), as plain reads and writes that outlast short failures.

Transient errors are tried again with exponential back-off, within bounds; what remains is one line for people.
"""

import contextlib
import errno
import logging
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fsspec.core import split_protocol

from mlpt.errors import UserError
from mlpt.storage.files import filesystem, one_line, reason

T = TypeVar("T")

_TRIES = 5
_FIRST_DELAY_S = 0.5  # doubled each time
_PATIENCE_S = 60.0  # no further try begins after this
_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss"}  # no folders to make; writes are whole
# botocore's own retries would multiply with s3fs's and ours: a silent server would hold a run for most of an hour.
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}
_FINAL = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError, ImportError, NotImplementedError)
_log = logging.getLogger(__name__)


class StorageError(UserError):
    """Storage that refuses, or that did not answer however often it was asked."""


def is_uri(path: str) -> bool:
    """True for what lies behind a protocol; plain paths of this machine are none."""
    return "://" in path


class Store:
    """The objects below one URI, by name relative to it. Every method raises `StorageError` in one line.

    After a failure the next operation is tried once only, until one succeeds: whoever goes on without the storage
    shouldn't wait for it each time.
    """

    def __init__(self, uri: str, tries: int = _TRIES):
        """Raises `UserError` for what is no URI, an unknown protocol, a package that is missing, or a URI that holds a
        password."""
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise UserError(f"{uri} is no URI ({one_line(error)}); write it as s3://bucket/folder") from error
        if parts.password is not None:
            shown = uri.replace(parts.netloc, parts.netloc.rpartition("@")[2])
            raise UserError(f"the URI of {shown} holds a password, which would be written down; use the environment")
        self.uri = uri.rstrip("/")
        if self.uri.endswith(":"):  # s3://, whose slashes may be gone already
            raise UserError(f"{self.uri}// names no place; write it as s3://bucket/folder")
        protocol = split_protocol(uri)[0] or "file"
        self._fs, root = filesystem(self.uri, **_OPTIONS.get(protocol, {}))
        self._root = root.rstrip("/")
        self._protocol = protocol
        if protocol in _BUCKETS:
            # Their clients leave half-sent requests of a connection that broke to asyncio, which prints tracebacks;
            # what comes of it is told by the operation that fails.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._has_folders = protocol not in _BUCKETS
        self._tries = tries
        self._away = False

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is no such object."""
        try:
            content: bytes = self._try("read", name, lambda: self._fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        return content

    def written(self, name: str) -> float | None:
        """When an object was written last, in seconds since 1970; None if there is none, or nobody knows."""

        def modified() -> Any:
            with contextlib.suppress(NotImplementedError):
                return self._fs.modified(self._path(name))

        try:
            found = self._try("read", name, modified)
        except FileNotFoundError:
            return None
        return None if found is None else float(found.timestamp())

    def write(self, name: str, content: bytes) -> None:
        """Make or replace an object at once: a reader sees the old content or the new one."""
        self._put(name, lambda path: self._fs.pipe_file(path, content))

    def create(self, name: str, content: bytes) -> bool:
        """Make an object; False if there is one.

        Of several who do so at once exactly one gets True, on this machine's file systems and on storage that writes
        on a condition (S3, Google Cloud Storage).
        """
        path = self._path(name)

        def make() -> bool:
            try:
                if self._protocol == "file":
                    self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                    with self._fs.open(path, "xb") as file:
                        file.write(content)
                else:
                    self._fs.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            return True

        try:
            made = self._try("write", name, make)
        except FileNotFoundError as error:  # no such bucket
            raise StorageError(self._why("write", name, error)) from error
        return made or self.read(name) == content  # of a try whose answer was lost

    def upload(self, file: Path, name: str) -> None:
        """As `write`, from a local file."""
        self._put(name, lambda path: self._fs.put_file(str(file), path))

    def download(self, name: str, file: Path) -> bool:
        """Copy an object to a local file; False if there is no such object."""
        try:
            self._try("read", name, lambda: self._fs.get_file(self._path(name), str(file)))
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str) -> list[str]:
        """Names directly below `folder`, sorted; none if there is no such folder."""
        try:
            paths = self._try("list", folder, lambda: self._ls(folder))
        except FileNotFoundError:
            return []
        return sorted({PurePosixPath(path).name for path in paths} - {PurePosixPath(self._path(folder)).name})

    def has(self, pattern: str) -> bool:
        """True if there is an object or folder of this name; its last part may be a pattern."""
        folder, _, name = pattern.rpartition("/")
        return any(fnmatch(there, name) for there in self.names(folder))

    def remove(self, name: str) -> None:
        """Remove an object, or all objects of a folder; fine if there is none."""
        try:
            self._try("remove", name, lambda: self._fs.rm(self._path(name), recursive=True))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ls(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()  # another machine may have written meanwhile
        paths: list[str] = self._fs.ls(self._path(folder), detail=False)
        return paths

    def _put(self, name: str, put: Callable[[str], Any]) -> None:
        path = self._path(name)

        def in_folder() -> None:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            put(f"{path}.partial")
            self._fs.mv(f"{path}.partial", path)

        try:
            self._try("write", name, in_folder if self._has_folders else lambda: put(path))
        except FileNotFoundError as error:  # no such bucket
            raise StorageError(self._why("write", name, error)) from error

    def _try(self, doing: str, name: str, operation: Callable[[], T]) -> T:
        deadline, delay = time.monotonic() + _PATIENCE_S, _FIRST_DELAY_S
        tries = 1 if self._away else self._tries
        while True:
            try:
                result = operation()
            except FileNotFoundError:
                raise
            except Exception as error:  # each protocol's package raises errors of its own
                tries -= 1
                if _is_final(error) or not tries or time.monotonic() + delay > deadline:
                    self._away = True
                    raise StorageError(self._why(doing, name, error)) from error
                _log.warning("cannot %s %s/%s (%s); again in %g s", doing, self.uri, name, one_line(error), delay)
                time.sleep(delay)
                delay *= 2
            else:
                self._away = False
                return result

    def _why(self, doing: str, name: str, error: Exception) -> str:
        if isinstance(error, OSError) and _is_full(error):
            return f"cannot {doing} {self.uri}/{name}: {reason(error)}"
        if self._protocol == "file":
            return f"cannot {doing} {self.uri}/{name} ({one_line(error)}); check the folder"
        return (
            f"cannot {doing} {self.uri}/{name} ({one_line(error)}); check the bucket, your credentials and the network"
        )


def _is_final(error: Exception) -> bool:
    """True where asking again cannot help."""
    full = isinstance(error, OSError) and _is_full(error)
    return full or isinstance(error, _FINAL) or "Credential" in type(error).__name__


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
