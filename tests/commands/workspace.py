"""Commands as a user runs them, in this process; and what they did to the folder they ran in."""

import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from mlpt.cli import run


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Workspace:
    """A folder in which commands run, and a picture of it as it was."""

    def __init__(self, folder: Path, captured: pytest.CaptureFixture[str]):
        self.folder = folder
        self._captured = captured
        self._before = self.files()

    def run(self, line: str | list[str]) -> Ended:
        """`mlpt LINE`."""
        self._captured.readouterr()
        code = run(shlex.split(line) if isinstance(line, str) else line)
        return Ended(code, *self._captured.readouterr())

    def refuses(self, line: str | list[str], says: str, code: int = 2) -> None:
        """Check that `mlpt LINE` ends with one line that holds `says`, and that nothing was lost or written."""
        ended = self.run(line)
        assert ended.code == code, ended
        assert ended.err.startswith("mlpt: "), ended
        assert ended.err.count("\n") == 1, ended.err
        assert says in ended.err, ended.err
        assert "Traceback" not in ended.out + ended.err
        self.is_unchanged()

    def is_unchanged(self) -> None:
        """Check that every file is what it was."""
        after = self.files()
        assert sorted(after.keys() ^ self._before.keys()) == []
        assert [name for name in after if after[name] != self._before[name]] == []

    def remove_what_is_new(self) -> None:
        """Remove what was not there at first."""
        for name in sorted(self.files().keys() - self._before.keys(), reverse=True):
            path = self.folder / name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and time of everything in the folder, by its name; 0 and 0 for folders."""
        found = {}
        for path in self.folder.rglob("*"):
            status = path.lstat()
            times = (status.st_size, status.st_mtime_ns) if not path.is_dir() else (0, 0)
            found[str(path.relative_to(self.folder))] = times
        return found
