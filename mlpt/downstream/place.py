"""Where a fine-tuning leaves its results: a folder, or a URI with a working folder on each machine.

At a URI all is made in the working folder, as in any folder. Checkpoints go up while it trains; the rest goes up when a
result is whole, the result itself last, so that whoever finds it there finds all of it.
"""

import contextlib
import json
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from mlpt.errors import CrashError, UserError
from mlpt.outputs import LEASE, Kind, check_names, growing_folder, leased
from mlpt.storage.checkpoint import Checkpoints, write_whole
from mlpt.storage.files import readable_errors
from mlpt.storage.mirror import MirroredCheckpoints, Remote
from mlpt.storage.store import StorageError, Store, is_uri

_RUN_ID = "run.json"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Place:
    """A folder or URI, and what is below `inner` in it. Plain: it goes to workers.

    run_id  tells what lies at a URI from what lay there before; `growing_place` knows it.
    """

    out: str
    run_id: str | None = None
    inner: str = ""

    @property
    def name(self) -> str:
        """What people call it by."""
        return self.named("")

    def named(self, file: str) -> str:
        """What people call a file in it by."""
        if not is_uri(self.out):
            return str(Path(self.out, self.inner, file))
        return "/".join(part for part in (self.out.rstrip("/"), self.inner, file) if part)

    @property
    def folder(self) -> Path:
        """The folder of this process; a working folder is made."""
        remote = self._remote
        if remote is None:
            return Path(self.out, self.inner)
        path = remote.folder(()) / self.inner
        with readable_errors(str(path), "write"):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def checkpoints(self, keep: int, settings: str, warn: Callable[[str], None]) -> Checkpoints:
        """Of what is trained here. At a URI the file `settings` goes up before the first one, and `warn` is told what
        could not go up for now."""
        saved = self.folder / _CHECKPOINTS
        if self._remote is None:
            return Checkpoints(saved, keep, f"remove {saved} and run the same command again")
        again = f"remove {self.named(_CHECKPOINTS)} and {saved}, and run the same command again"
        return MirroredCheckpoints(self.folder, keep, Store(self.name), warn, again, (settings,))

    def holders(self, pattern: str, file: str) -> list[str]:
        """The folders `FOLDER/NAME` in it, sorted, that hold a `file`; `pattern` is of the NAME."""
        folder = self.folder
        found = {path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/{pattern}/{file}")}
        if self._remote is not None:
            store = Store(self.name)
            inner = [f"{outer}/{name}" for outer in store.names("") for name in store.names(outer)]
            found |= {one for one in inner if fnmatch(one, f"*/{pattern}") and store.has(f"{one}/{file}")}
        return sorted(found)

    def fetch(self, *names: str) -> None:
        """Get those files that another machine has left and this one lacks."""
        if self._remote is None:
            return
        store = Store(self.name)
        for name in names:
            if (self.folder / name).is_file():
                continue
            content = store.read(name)
            if content is not None:
                with readable_errors(str(self.folder / name), "write"):
                    write_whole(self.folder / name, content)

    def send(self, name: str) -> None:
        """Copy a file to the URI, if there is one. Raises `UserError` when that cannot be done."""
        if self._remote is not None:
            with self._told():
                Store(self.name).upload(self.folder / name, name)

    def finish(self, result: str) -> None:
        """Copy all that was made to the URI, if there is one and `result` is not yet there; checkpoints there go."""
        if self._remote is None:
            return
        content, store = (self.folder / result).read_bytes(), Store(self.name)
        with self._told():
            if store.read(result) == content:
                return
            for file in sorted(self.folder.rglob("*")):
                name = file.relative_to(self.folder)
                is_ours = name.parts[0] != _CHECKPOINTS and not any(part.startswith(".") for part in name.parts)
                if is_ours and file.is_file() and str(name) != result:
                    store.upload(file, name.as_posix())
            store.write(result, content)
        with contextlib.suppress(StorageError):
            store.remove(_CHECKPOINTS)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            raise UserError(
                f"{error}. All of it is in {self.folder} on {socket.gethostname()}; the same command there sends it up "
                "when the storage is back"
            ) from error

    @property
    def _remote(self) -> Remote | None:
        if not is_uri(self.out):
            return None
        if self.run_id is None:
            raise UserError(f"{self.out} is a URI, which mlpt.finetune and `mlpt finetune` open; call one of them")
        return Remote(self.out.rstrip("/"), self.run_id)


@contextlib.contextmanager
def growing_place(out: str, kind: Kind, overwrite: bool, files: Mapping[str, str] | None = None) -> Iterator[Place]:
    """As `outputs.growing_folder`, for a folder or a URI; held for this process while the block lasts.

    files  what is written into a new one first, and says what was asked.
    Raises `UserError` where a result of `kind` may not go there, and where a store does not answer.
    """
    if not is_uri(out):
        with growing_folder(out, kind, overwrite, files):
            yield Place(out)
        return
    uri = out.rstrip("/")
    if overwrite:
        raise UserError(f"--overwrite replaces folders of this machine, not {uri}; choose another out")
    store = Store(uri)
    names = [name for name in store.names("") if name != _RUN_ID]  # of a start that was killed
    check_names(uri, names, store.has, kind, resumes=True)
    with leased(store, uri), _put_there(store, files or {}) as run_id:
        yield Place(uri, run_id)


@contextlib.contextmanager
def _put_there(store: Store, files: Mapping[str, str]) -> Iterator[str]:
    """The id of what lies in `store`, old or new; a new one goes again where the block fails and leaves nothing."""
    run_id = ""
    try:
        for name, text in files.items():
            if store.read(name) is None:
                store.write(name, text.encode())
        identity = store.read(_RUN_ID)
        if identity is None:
            identity = json.dumps({"id": uuid.uuid4().hex}).encode()
            store.write(_RUN_ID, identity)
        try:
            run_id = str(json.loads(identity)["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{store.uri}/{_RUN_ID} is damaged; remove it and run the same command again") from error
        yield run_id
    except CrashError:
        raise
    except BaseException:
        with contextlib.suppress(StorageError):  # it is not the error to tell of
            own = {_RUN_ID, *files}
            there = {name for name in store.names("") if not name.startswith(LEASE)}
            if there <= own:
                for name in own:
                    store.remove(name)
                shutil.rmtree(Remote(store.uri, run_id).place, ignore_errors=True)
        raise
