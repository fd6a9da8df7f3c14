"""Errors of the system at the calls that open, make, move and remove files below a folder, as Python sees them."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Audit events of calls that touch files; each has a path among its arguments. A hook that raises stops the call.
CALLS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "os.chmod",
    "os.truncate",
    "os.symlink",
}
ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOENT)


class Fault:
    """Counts the calls below `folder`; call number `at` and (if `lasting`) all later ones fail with `number`."""

    def __init__(self, folder: Path, at: int | None, number: int = errno.ENOSPC, lasting: bool = True):
        self.folder, self.at, self.number, self.lasting = str(folder), at, number, lasting
        self.calls = 0
        self.raised = 0

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called for every audit event while it is armed."""
        if event not in CALLS:
            return
        path = next((os.fsdecode(one) for one in arguments if isinstance(one, str | bytes)), None)
        if path is None or not os.path.abspath(path).startswith(self.folder):
            return
        self.calls += 1
        is_due = self.at is not None and (self.calls > self.at if self.lasting else self.calls == self.at + 1)
        if is_due:
            self.raised += 1
            raise OSError(self.number, os.strerror(self.number), path)


_armed: list[Fault] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _armed:
        _armed[-1].see(event, arguments)


@contextmanager
def failing(fault: Fault) -> Iterator[Fault]:
    """Arm `fault` for the block. Hooks cannot be taken away again: one is added, and is idle outside such blocks."""
    if not getattr(sys, "_mlpt_hooked", False):
        sys.addaudithook(_hook)
        sys._mlpt_hooked = True  # type: ignore[attr-defined]
    _armed.append(fault)
    try:
        yield fault
    finally:
        _armed.pop()
