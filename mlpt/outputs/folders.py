"""The rule for folders: a new or empty one, or with `--overwrite` an earlier result of the same kind."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from mlpt.errors import CrashError, UserError
from mlpt.outputs.files import write_file
from mlpt.outputs.kinds import Kind
from mlpt.outputs.lease import PREFIX, Folder, leased, refusal
from mlpt.outputs.places import StrPath, absolute, check_writable, said

_ASIDE = ".replaced"  # all that was there before, until the new result is
_MOVING = ".replacing"  # a part of it, on its way there or back
_UNNAMED_S = 2.0  # in which who holds a lock has written its lease


def check_folder(place: StrPath, kind: Kind, overwrite: bool = False, resumes: bool = False) -> Path:
    """The absolute path of a folder that may take a result of `kind`; nothing is made yet.

    What an attempt that was killed has set aside comes back first.

    resumes  the command goes on with a result of its kind that it finds there.
    Raises `UserError` for a file, a folder of anything else, and what cannot be written.
    """
    path = absolute(place)
    with said(path):
        if path.is_file():
            raise UserError(f"{path} is a file; name a folder")
        check_writable(path)
        if (path / _MOVING).exists() or ((path / _ASIDE).exists() and not is_there(path, kind)):
            with alone_in(path):
                _put_back(path, kind)
        names = _names(path)
    check_names(str(path), names, lambda pattern: _has(path, pattern), kind, overwrite, resumes)
    return path


def check_names(
    place: str,
    names: Sequence[str],
    has: Callable[[str], bool],
    kind: Kind,
    overwrite: bool = False,
    resumes: bool = False,
) -> None:
    """The rule itself, for a folder or URI `place` with `names` directly in it; `has(pattern)` looks for a pattern.

    Raises `UserError` where a result of `kind` may not go there.
    """
    names = [name for name in names if not name.startswith(PREFIX)]
    if not names:
        return
    if not any(has(mark) for mark in kind.marks):
        raise UserError(
            f"{place} is not empty (it holds {min(names)}) and is not {kind.name} that mlpt made; name a new folder"
        )
    is_result = any(has(result) for result in kind.results)
    if is_result and resumes and not overwrite:
        return
    foreign = [name for name in names if not name.startswith(".") and not _belongs(name, has, kind)]
    if foreign:
        raise UserError(f"{place} holds {min(foreign)} besides {kind.name}; name a new folder")
    if is_result and not overwrite:
        raise UserError(f"{place} holds {kind.name}; name a new folder, or replace it with --overwrite")


@contextlib.contextmanager
def new_folder(place: StrPath, kind: Kind, overwrite: bool, mark: str | None = None) -> Iterator[Path]:
    """`check_folder` and `taken_folder` in one, for a result that is made at once."""
    with taken_folder(check_folder(place, kind, overwrite), kind, overwrite, mark) as path:
        yield path


@contextlib.contextmanager
def growing_folder(
    place: StrPath, kind: Kind, overwrite: bool, files: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """The folder of a result that the same command may go on with later; with `overwrite` it begins anew. For this
    process alone.

    files  what is written into a new one first, and says what was asked.
    """
    path = check_folder(place, kind, overwrite, resumes=True)
    if is_there(path, kind) and not overwrite:
        with alone_in(path):
            yield path
            forget_replaced(path)
        return
    with taken_folder(path, kind, overwrite):
        for name, text in (files or {}).items():
            write_file(path / name, text.encode())
        yield path


@contextlib.contextmanager
def taken_folder(
    path: Path, kind: Kind, overwrite: bool, mark: str | None = None, private: bool = False
) -> Iterator[Path]:
    """The folder that `check_folder` has found fit, made and emptied, to write a result into; for this process alone.

    What was there comes back if the block fails and leaves no result of `kind`; it goes when the block ends well.
    After a `CrashError` what the block left stays in a place that was empty.

    mark     a file that the result has last: until then it is there, empty or written, as `mark.unfinished`.
    private  a folder that is made can be read by its owner only.
    """
    made = [one for one in (path, *path.parents) if not one.exists()]
    with said(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
    try:
        with alone_in(path):
            # Again: another process may have ended in between.
            check_names(str(path), _names(path), lambda pattern: _has(path, pattern), kind, overwrite)
            with said(path):
                _set_aside(path)
            with _kept_or_put_back(path, kind, mark):
                yield path
            forget_replaced(path)
    except BaseException:
        for one in made:
            with contextlib.suppress(OSError):  # there is something to keep, or others have put something beside it
                one.rmdir()
        raise


@contextlib.contextmanager
def alone_in(path: Path, instead: str = "name another folder") -> Iterator[None]:
    """Hold the folder `path` for this process while the block lasts. Raises `UserError` that names another owner.

    A lock decides at once among processes of one machine, and ends with them; the lease tells other machines.
    """
    with said(path):
        folder = os.open(path, os.O_RDONLY)
    try:
        with said(path):
            locked = _lock(folder, path, instead)
        with contextlib.ExitStack() as held:
            with said(path):
                held.enter_context(leased(Folder(path), str(path), instead, locked))
            yield
    finally:
        os.close(folder)


def _lock(folder: int, path: Path, instead: str) -> bool:
    """Lock an open folder; False on a file system without locks. Raises `UserError` where another process has it."""
    deadline = time.monotonic() + _UNNAMED_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            refused = refusal(Folder(path), str(path), instead)
            if refused is not None:
                raise refused from error
            if time.monotonic() > deadline:
                raise UserError(f"another process is writing to {path}; wait for it, or {instead}") from error
            time.sleep(0.02)  # its lease is about to be written, or its lock about to go
        except OSError:
            return False
        else:
            return True


@contextlib.contextmanager
def _kept_or_put_back(path: Path, kind: Kind, mark: str | None) -> Iterator[None]:
    try:
        if mark is not None:
            (path / f"{mark}.unfinished").touch()
        yield
        if mark is not None:
            os.replace(path / f"{mark}.unfinished", path / mark)
    except BaseException as error:
        is_to_stay = isinstance(error, CrashError) and not (path / _ASIDE).exists()
        if not is_to_stay and not is_there(path, kind):
            _put_back(path, kind)
        raise


def is_there(path: Path, kind: Kind) -> bool:
    """True if the folder `path` holds a result of `kind`, or the beginning of one."""
    return any(_has(path, result) for result in kind.results)


def forget_replaced(path: Path) -> None:
    """Remove what `taken_folder` has set aside in `path`."""
    shutil.rmtree(path / _ASIDE, ignore_errors=True)


def _names(path: Path) -> list[str]:
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return []
    return [name for name in names if name not in (_ASIDE, _MOVING) and not name.startswith(PREFIX)]


def _has(path: Path, pattern: str) -> bool:
    return any(path.glob(pattern))


def _belongs(name: str, has: Callable[[str], bool], kind: Kind) -> bool:
    for pattern in kind.contents:
        head, _, inside = pattern.partition("/")
        if fnmatch(name, head) and (not inside or has(f"{_escaped(name)}/{inside}")):
            return True
    return False


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _set_aside(path: Path) -> None:
    """Move what is in `path` into a hidden folder in it."""
    forget_replaced(path)
    names = _names(path)
    if not names:
        return
    (path / _MOVING).mkdir()
    try:
        for name in names:
            os.rename(path / name, path / _MOVING / name)
        os.rename(path / _MOVING, path / _ASIDE)
    except OSError:
        _move_up(path)
        raise


def _put_back(path: Path, kind: Kind) -> None:
    """Remove what an attempt has made in `path`, and move back what was set aside for it.

    Where somebody else has put something into a place that was empty, all of it stays: it may belong together.
    """
    if not (path / _MOVING).exists():
        has_replaced = (path / _ASIDE).is_dir()
        ours = [name for name in _names(path) if _is_ours(path / name, kind)]
        if has_replaced or len(ours) == len(_names(path)):
            for name in ours:
                whole = path / name
                shutil.rmtree(whole) if whole.is_dir() and not whole.is_symlink() else whole.unlink()
        if has_replaced:
            os.rename(path / _ASIDE, path / _MOVING)
    _move_up(path)


def _is_ours(path: Path, kind: Kind) -> bool:
    """Whether a result of `kind`, or the beginning of one, may have this directly in its folder."""
    is_empty = path.is_dir() and not path.is_symlink() and not any(one.is_file() for one in path.rglob("*"))
    return path.name.startswith(".") or is_empty or _belongs(path.name, partial(_has, path.parent), kind)


def _move_up(path: Path) -> None:
    """While this folder is there, a part of what was set aside may be in its place already: nothing is removed."""
    if (path / _MOVING).is_dir():
        for name in os.listdir(path / _MOVING):
            os.rename(path / _MOVING / name, path / name)
        (path / _MOVING).rmdir()
