"""What became of a run, written by the process that starts it: `history.json`, an entry for every start.

While that process lives it holds a lock on `.running`, so that a run which was killed is not taken for one under way.
"""

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mlpt.errors import UserError, one_line
from mlpt.outputs import write_json

HISTORY = "history.json"
REPORT = "report.html"
_LOCK = ".running"
_QUIET_S = 120.0  # without locks: a run whose files have not changed for so long is not under way
_PACKAGES = ("mlpt", "torch", "ray", "transformers", "tokenizers", "higher", "numpy", "pyarrow")

State = Literal["running", "stopped", "finished", "failed"]


@contextlib.contextmanager
def recorded(folder: Path, step: int) -> Iterator[None]:
    """Note in the run's `folder` that it goes on from `step`, and when and how the block has ended.

    History is for people: where it cannot be written, the run goes on without.
    """
    lock = _held(folder / _LOCK)
    starts = read_history(_bytes(folder / HISTORY)) if step else []
    entry: dict[str, Any] = {"at": _now(), "step": step, "environment": environment()}
    _write(folder, [*starts, entry])
    end: dict[str, Any] = {"end": "finished"}
    try:
        yield
    except KeyboardInterrupt:
        end = {"end": "stopped"}
        raise
    except BaseException as error:
        end = {"end": "failed", "error": one_line(error)}
        raise
    finally:
        _write(folder, [*starts, entry | end | {"until": _now()}])
        if lock is not None:
            os.close(lock)


def read_history(content: bytes | None) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; none where nothing readable was noted."""
    try:
        starts = json.loads(content or b"[]")
    except ValueError:
        return []
    return [one for one in starts if isinstance(one, dict)] if isinstance(starts, list) else []


def state_of(folder: Path | None, starts: list[dict[str, Any]], has_ended: bool) -> State:
    """What the run is doing now.

    folder     on this machine; None for a run at a URI, of which only what was noted is known.
    has_ended  whether its last figures were written.
    """
    end = starts[-1].get("end") if starts else None
    if end == "failed":
        return "failed"
    if end == "finished" or (has_ended and not starts):
        return "finished"
    if end == "stopped":
        return "stopped"
    # Nobody has noted an end: the run goes on, its model is being written, or it was killed.
    going_on = bool(starts) if folder is None else _is_alive(folder, bool(starts))
    if going_on and not (folder is None and has_ended):
        return "running"
    return "finished" if has_ended else "stopped"


def environment() -> dict[str, Any]:
    """Versions and the kind of machine, without names of machine, user or folders."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": versions,
    }
    import torch

    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    return found


def _is_alive(folder: Path, noted: bool) -> bool:
    try:
        file = os.open(folder / _LOCK, os.O_RDONLY)
    except OSError:  # a trial of a sweep, or the run of another version
        newest = max((_changed(folder / name) for name in ("metrics.jsonl", "config.yaml", "logs")), default=0.0)
        return not noted and time.time() - newest < _QUIET_S
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return time.time() - _changed(folder / "metrics.jsonl") < _QUIET_S
    finally:
        os.close(file)
    return False


def _held(path: Path) -> int | None:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _write(folder: Path, starts: list[dict[str, Any]]) -> None:
    with contextlib.suppress(OSError, UserError):
        if folder.is_dir():  # a start that failed takes its folder away
            write_json(folder / HISTORY, starts)


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
