"""One writer a result: a lease, in the result's folder or at its URI, that names who writes and until when.

Leases are numbered files `.lease_000001.json`, made with a write that fails where there is one: of several who want the
next number exactly one gets it. An owner renews its lease; one that is dead, or has not renewed it in time, is
succeeded by the next number, and gives way when it sees that.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil

from mlpt.errors import UserError

PREFIX = ".lease_"
LASTS_S = 60.0  # after the last renewal; clocks of machines that share a place must agree better than that
_RENEWED_EVERY_S = 15.0


class LeaseStore(Protocol):
    """Where leases lie: a folder (`Folder`) or a URI (`mlpt.storage.store.Store`)."""

    def names(self, folder: str) -> list[str]:
        """Names directly below `folder`."""

    def read(self, name: str) -> bytes | None:
        """The content; None if there is none."""

    def written(self, name: str) -> float | None:
        """When it was written last, in seconds since 1970; None if there is none, or nobody knows."""

    def create(self, name: str, content: bytes) -> bool:
        """Make it; False if it is there."""

    def write(self, name: str, content: bytes) -> None:
        """Replace it."""

    def remove(self, name: str) -> None:
        """Remove it if it is there."""


class Folder:
    """A folder of this machine, or of one that others share. Raises `OSError`."""

    def __init__(self, path: Path):
        self._path = path

    def names(self, folder: str) -> list[str]:
        return os.listdir(self._path / folder)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def written(self, name: str) -> float | None:
        try:
            return (self._path / name).stat().st_mtime
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> bool:
        try:
            file = os.open(self._path / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            _write_whole(file, content)
        except OSError:
            self.remove(name)
            raise
        finally:
            os.close(file)
        return True

    def write(self, name: str, content: bytes) -> None:
        partial = self._path / f"{name}.partial"
        with open(partial, "wb", buffering=0) as file:
            _write_whole(file.fileno(), content)
        os.replace(partial, self._path / name)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


def _write_whole(file: int, content: bytes) -> None:
    """To the disk, however many writes that takes."""
    while content:
        content = content[os.write(file, content) :]
    os.fsync(file)


@contextlib.contextmanager
def leased(place: LeaseStore, named: str, instead: str = "name another", locked: bool = False) -> Iterator[None]:
    """Hold `place` for this process while the block lasts. Raises `UserError` that names another owner.

    named    the place, for people.
    instead  what they can do besides waiting.
    locked   a lock shows that no other process of this machine holds the place: what it left there is from a dead one.
    """
    lease = _Lease(place, named)
    lease.take(instead, locked)
    done = threading.Event()
    renewing = threading.Thread(target=lease.renew_until, args=(done,), name="lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        lease.give_back()


def refusal(place: LeaseStore, named: str, instead: str) -> UserError | None:
    """The error that names who holds `place`; None if there is no lease."""
    found = _newest(place)
    return None if found is None else _refused(found[1], named, instead)


class _Lease:
    def __init__(self, place: LeaseStore, named: str):
        self._place = place
        self._named = named
        self._owner = _this_process()
        self._number = 0
        self._expires = 0.0

    def take(self, instead: str, locked: bool) -> None:
        """Get the next number. Raises `UserError` where another's lease is in force, or another was quicker."""
        found = _newest(self._place)
        if found is not None and not _is_over(found[1], locked):
            raise _refused(found[1], self._named, instead)
        self._number = 1 if found is None else found[0] + 1
        if not self._place.create(self._name(self._number), self._content()):
            raise refusal(self._place, self._named, instead) or UserError(_line(self._named, "", instead))
        if found is not None:
            self._remove(found[0])

    def renew_until(self, done: threading.Event) -> None:
        """Renew the lease again and again. Ends this process where another has taken the place over."""
        while not done.wait(_RENEWED_EVERY_S):
            with contextlib.suppress(OSError, UserError):  # the storage is away: the next time
                found = _newest(self._place)
                if found is not None and found[0] > self._number:
                    _give_way(found[1], self._named)
                self._place.write(self._name(self._number), self._content())

    def give_back(self) -> None:
        """Let others have the place at once. One that has run out may be another's by now, and stays."""
        if time.time() < self._expires:
            self._remove(self._number)

    def _remove(self, number: int) -> None:
        with contextlib.suppress(OSError, UserError):
            self._place.remove(self._name(number))

    def _content(self) -> bytes:
        self._expires = time.time() + LASTS_S
        return json.dumps({**self._owner, "expires": self._expires}).encode()

    def _name(self, number: int) -> str:
        return f"{PREFIX}{number:06d}.json"


def _newest(place: LeaseStore) -> tuple[int, dict[str, Any]] | None:
    """Number and owner of the newest lease. Of one that is being written this very moment, or that a crash has cut, the
    owner has no name, and its time counts from when the file was written."""
    stems = [name.removeprefix(PREFIX).removesuffix(".json") for name in place.names("") if name.startswith(PREFIX)]
    numbers = [int(stem) for stem in stems if stem.isdigit()]
    if not numbers:
        return None
    name = f"{PREFIX}{max(numbers):06d}.json"
    content = place.read(name)
    if content is None:  # given back meanwhile
        return None
    with contextlib.suppress(ValueError):
        owner = json.loads(content)
        if isinstance(owner, dict) and isinstance(owner.get("expires"), int | float):
            return max(numbers), owner
    written = place.written(name)
    return max(numbers), {} if written is None else {"expires": written + LASTS_S}


def _this_process() -> dict[str, Any]:
    """Who owns a lease. `machine` tells whether a process number means anything here."""
    return {
        "owner": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "born": psutil.Process().create_time(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _machine() -> str:
    """This start of this machine, and the namespace of its process numbers (containers have their own)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # other systems than Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _is_over(owner: dict[str, Any], locked: bool) -> bool:
    """True if the owner of a lease is dead, or has not renewed it in time."""
    if owner.get("machine") == _machine():
        return locked or not _is_alive(owner)
    expires = owner.get("expires")
    return isinstance(expires, int | float) and expires < time.time()


def _is_alive(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(owner["process"]))
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - float(owner["born"])) < 1
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False


def _refused(owner: dict[str, Any], named: str, instead: str) -> UserError:
    who = ""
    if {"process", "host", "since", "expires"} <= owner.keys():
        who = f" (process {owner['process']} on {owner['host']}, since {owner['since']})"
    if "expires" in owner and owner.get("machine") != _machine():
        left = max(0, round(owner["expires"] - time.time()))
        instead = f"{instead}; should it have died, it is over in {left} s"
    return UserError(_line(named, who, instead))


def _line(named: str, who: str, instead: str) -> str:
    return f"another process is writing to {named}{who}; wait for it, or {instead}"


def _give_way(owner: dict[str, Any], named: str) -> None:
    """End this process: what it would write from here on would be mixed into what another one writes."""
    who = f"process {owner.get('process')} on {owner.get('host')}"
    sys.stderr.write(f"mlpt: {who} has taken over {named}, as this process did not renew its lease in time\n")
    sys.stderr.flush()
    os._exit(2)
