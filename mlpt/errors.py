"""Errors for people: one line that says what is wrong and what to do."""

import errno
import os
import re
import shlex
from typing import Any

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries written in Rust name the error of the system
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something that whoever runs mlpt can put right: bad input, a bad setting, a full disk.

    The command line prints the text as one line and exits with code 2; `--debug` shows the traceback.
    """


class CrashError(UserError):
    """An end whose cause stands in logs: what was left beside them stays where it is."""


def one_line(error: Any) -> str:
    """The text of an error on one line, its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def reason(error: OSError, then: str = "run the same command again") -> str:
    """What happened and what to do, for the errors of a disk that people meet; `then` follows when there is room."""
    if error.errno in _FULL:
        return f"the disk is full; free some space or write elsewhere, then {then}"
    if isinstance(error, FileNotFoundError):
        return "there is no such file; check the path"
    if isinstance(error, PermissionError):
        return "permission denied; check who owns it"
    if isinstance(error, NotADirectoryError):
        return "a part of this path is a file, not a folder; check the path"
    if isinstance(error, IsADirectoryError):
        return "this is a folder, not a file; check the path"
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long; choose a shorter one"
    if error.errno == errno.EROFS:
        return "the file system is read-only; write elsewhere"
    return one_line(error.strerror or error)


def is_lasting(error: OSError) -> bool:
    """True for what trying again at once cannot mend: a full disk, a place that may not be written."""
    return error.errno in (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR)


def system_error(error: BaseException) -> OSError | None:
    """The `OSError` that `error` is or tells of; None if it is another kind of error.

    Libraries that write files from Rust (safetensors, tokenizers) raise errors of their own for it.
    """
    if isinstance(error, OSError):
        return error
    named = _OS_ERROR.search(str(error))
    return None if named is None else OSError(int(named.group(1)), one_line(error))


def told(error: OSError, then: str = "run the same command again") -> str:
    """One line about an `OSError` from anywhere: the path, what happened, and what to do; see `reason`."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' -> '.join(names)}: {reason(error, then)}" if names else reason(error, then)


def command(*words: str) -> str:
    """`mlpt WORDS`, quoted for a shell."""
    return shlex.join(["mlpt", *words])


def pretrain_command(*words: str) -> str:
    """`mlpt pretrain WORDS`, quoted for a shell."""
    return command("pretrain", *words)


def resume_command(run: str, *words: str) -> str:
    """The command that goes on with the run in the folder or at the URI `run`, quoted for a shell."""
    return pretrain_command("--resume", run, *words)
