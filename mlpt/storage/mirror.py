"""A run at a URI: it works in a folder of each machine, and what another machine would need is copied to the URI.

The folder is used as that of any run. After each local checkpoint the checkpoint goes up, its `COMMITTED` last, with
the metrics up to it; a checkpoint that a machine lacks comes down and is verified like any other.
"""

import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from mlpt.errors import UserError, resume_command
from mlpt.storage.checkpoint import COMMITTED, Checkpoint, Checkpoints, read_checkpoint, step_name, write_whole
from mlpt.storage.files import cache_directory, readable_errors
from mlpt.storage.store import StorageError, Store

_METRICS = "metrics.jsonl"
_BEST = "checkpoints/best.json"
_GROWING = ("policies", "masks", "samples")  # what a resumed run doesn't make again
_FINAL = ("model", "tensorboard", "samples")
_LOG_TRIES = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A run that lives at a URI; `run_id` tells it from an earlier run at the same place. Plain: it goes to workers."""

    uri: str
    run_id: str

    @property
    def place(self) -> Path:
        """Where this machine's working folder of the run is, or would be."""
        digest = hashlib.blake2b(f"{self.uri} {self.run_id}".encode(), digest_size=8).hexdigest()
        return cache_directory() / "runs" / digest

    def folder(self, parts: Sequence[str] = ("checkpoints", "logs", "policies")) -> Path:
        """This machine's working folder of the run, made if needed with folders `parts` in it, for its owner only."""
        path = self.place
        with readable_errors(str(path), "write"):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in parts:
                (path / name).mkdir(exist_ok=True)
        return path


def working_folder(run_dir: str | os.PathLike[str], remote: Remote | None) -> Path:
    """The run's folder in this process: `run_dir`, which all nodes share, or for a `remote` run this node's own."""
    return Path(run_dir) if remote is None else remote.folder()


def run_checkpoints(run_dir: Path, keep: int, remote: Remote | None, warn: Callable[[str], None]) -> Checkpoints:
    """The checkpoints of a run, mirrored if it is `remote`; `warn` is told what could not go up for now."""
    if remote is None:
        return Checkpoints(run_dir / "checkpoints", keep)
    return MirroredCheckpoints(run_dir, keep, Store(remote.uri), warn)


class MirroredCheckpoints(Checkpoints):
    """Checkpoints in the working folder, and their copies in `store`.

    Storage that stays away costs nothing while training: everything is committed locally, and the next checkpoint tries
    again. Only `finish` insists.

    begin_again  as for folders. beside: files of the working folder that a checkpoint counts on.
    """

    def __init__(
        self,
        run_dir: Path,
        keep: int,
        store: Store,
        warn: Callable[[str], None],
        begin_again: str | None = None,
        beside: Sequence[str] = (),
    ):
        super().__init__(run_dir / "checkpoints", keep, begin_again)
        self._beside = tuple(beside)
        self.run = store.uri
        self._run_dir = run_dir
        self._store = store
        self._warn = warn
        self._sent: dict[str, tuple[int, int]] = {}  # name -> size and time of the file when it went up

    def known_steps(self) -> list[int]:
        """Steps committed here or there. Raises `StorageError` if none are here and the storage doesn't answer."""
        here = self.steps()
        try:
            return sorted({*here, *self._steps_there()})
        except StorageError as error:
            if not here:
                raise
            self._warn(f"{error}; going on from what lies in {self._run_dir}")
            return here

    def newest(self) -> int | None:
        """The newest step here or there; whether it is whole shows when it has come down."""
        return max(self.known_steps(), default=None)

    def latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """As for folders; sends the checkpoint up if only this machine has it, because other ranks may need it."""
        found = super().latest(say)
        if found is not None:
            self.after_commit(found.step)
        return found

    def load(self, step: int, mark: str | None = None) -> Checkpoint:
        """As for folders; what is missing or damaged here, or has another mark, comes down."""
        with FileLock(self._run_dir / ".fetch.lock"):  # several ranks of one machine share its folder
            try:
                return super().load(step, mark)
            except UserError:
                listing = self._store.read(_name(step, COMMITTED))
                if listing is None:
                    raise
                self._fetch(step, listing)
                return super().load(step, mark)

    def after_commit(self, step: int) -> None:
        """Send up what is new."""
        try:
            self._send(step)
        except StorageError as error:
            self._warn(f"{error}; step {step} is safe in {self._run_dir}, and the next checkpoint tries again")

    def finish(self) -> None:
        """Send up all the rest. Raises `UserError` if that cannot be done: nothing is lost then."""
        self.wait()
        try:
            for folder in _FINAL:
                self._send_folder(folder)
            for step in self.steps()[-1:]:
                self._send(step)
            self._store.write(_METRICS, self._metrics())
        except StorageError as error:
            raise UserError(
                f"{error}. The run is complete in {self._run_dir} on {socket.gethostname()}; "
                f"`{resume_command(self.run)}` there sends it up when the storage is back"
            ) from error

    def _send(self, step: int) -> None:
        """Metrics and policies first: whoever finds the checkpoint then finds what it counts on."""
        state = json.loads((self.path(step) / "state.json").read_text())
        self._store.write(_METRICS, self._metrics()[: state["metrics_bytes"]])
        for name in self._beside:
            self._send_file(name)
        for folder in _GROWING:
            self._send_folder(folder)
        best = self.best()
        for each in {step} if best is None else {step, best}:
            self._send_checkpoint(each)
        if best is not None:
            self._store.write(_BEST, json.dumps({"step": best}).encode())
        self._forget_there(step, best)

    def _send_checkpoint(self, step: int) -> None:
        path = self.path(step)
        if not (path / COMMITTED).is_file():
            return
        listing = (path / COMMITTED).read_bytes()
        there = self._store.read(_name(step, COMMITTED))
        if there == listing:
            return
        if there is not None:
            self._store.remove(_name(step, COMMITTED))
        for name in json.loads(listing)["files"]:
            self._store.upload(path / name, _name(step, name))
        self._store.write(_name(step, COMMITTED), listing)

    def _metrics(self) -> bytes:
        path = self._run_dir / _METRICS
        return path.read_bytes() if path.is_file() else b""

    def _send_folder(self, folder: str) -> None:
        for file in sorted((self._run_dir / folder).rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                self._send_file(str(file.relative_to(self._run_dir)))

    def _send_file(self, name: str) -> None:
        """Send a file that is there and has changed since it last went up."""
        file = self._run_dir / name
        if not file.is_file():
            return
        status = file.stat()
        version = (status.st_size, status.st_mtime_ns)
        if self._sent.get(name) != version:
            self._store.upload(file, name)
            self._sent[name] = version

    def _fetch(self, step: int, listing: bytes) -> None:
        """Make the working folder a copy of the run as it was at `step`, once the checkpoint has come down whole.

        Older local checkpoints go: they may count on other metrics than those that came with this one.
        """
        partial = self.folder / f".fetched_{step:08d}"
        with readable_errors(str(partial), "write"):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                (partial / COMMITTED).write_bytes(listing)
                for name in _files_of(listing, f"{self._store.uri}/{_name(step, COMMITTED)}"):
                    self._store.download(_name(step, name), partial / name)
                self._verify(partial, step)
                metrics, best = self._store.read(_METRICS) or b"", self._store.read(_BEST)
                for other in {*self.steps(), step}:
                    shutil.rmtree(self.path(other), ignore_errors=True)
                write_whole(self._run_dir / _METRICS, metrics)
                (self._run_dir / _BEST).unlink(missing_ok=True)
                if best is not None:
                    write_whole(self._run_dir / _BEST, best)
                os.replace(partial, self.path(step))
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _verify(self, partial: Path, step: int) -> None:
        try:
            read_checkpoint(partial, step)
        except UserError as error:
            raise UserError(f"checkpoint {self._store.uri}/checkpoints/{step_name(step)} is damaged") from error

    def _steps_there(self) -> list[int]:
        return [step for step in self._tried_there() if self._store.read(_name(step, COMMITTED)) is not None]

    def _tried_there(self) -> list[int]:
        """Steps of the checkpoints at the URI, torn ones among them, ascending."""
        numbers = [name.removeprefix("step_") for name in self._store.names("checkpoints") if name.startswith("step_")]
        return sorted(int(number) for number in numbers if number.isdigit())

    def _forget_there(self, step: int, best: int | None) -> None:
        """As locally: the last `keep` and the best stay. What was torn before `step` goes too."""
        kept = {*self._steps_there()[-self.keep :], step, best}
        for other in self._tried_there():
            if other < step and other not in kept:
                self._store.remove(_name(other, COMMITTED))
                self._store.remove(f"checkpoints/{step_name(other)}")


def fetch_log(remote: Remote | None, file: Path) -> None:
    """Get the log that an earlier machine of the run left, so that this one goes on in it."""
    if remote is not None and not file.exists():
        try:
            Store(remote.uri, tries=_LOG_TRIES).download(f"logs/{file.name}", file)
        except StorageError as error:
            _log.warning("%s; this log begins anew", error)


def send_log(remote: Remote | None, file: Path) -> None:
    """Send up one process's log; a log is no reason to fail."""
    if remote is not None:
        try:
            Store(remote.uri, tries=_LOG_TRIES).upload(file, f"logs/{file.name}")
        except StorageError as error:
            _log.warning("%s; the log stays in %s", error, file)


def _name(step: int, file: str) -> str:
    return f"checkpoints/{step_name(step)}/{file}"


def _files_of(listing: bytes, where: str) -> list[str]:
    """The file names in a `COMMITTED` from elsewhere; none of them may lead out of its folder."""
    try:
        names = list(json.loads(listing)["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {where} cannot be read ({error})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"checkpoint {where} is damaged: it names a file {name!r}")
    return names
