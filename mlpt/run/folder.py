"""Where a run lies: a folder or a URI, found or made, private, with the resolved configuration that repeats the run."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mlpt import outputs
from mlpt.config import RunConfig
from mlpt.errors import CrashError, UserError, reason, resume_command
from mlpt.reporting.history import HISTORY, REPORT
from mlpt.settings import load_settings
from mlpt.storage.mirror import Remote, run_checkpoints
from mlpt.storage.store import StorageError, Store, is_uri
from mlpt.yaml_text import read_yaml

CONFIG = "config.yaml"
BLOCKS = "blocks.json"
_LAST = list(RunConfig.model_fields)[-1]  # the section that stands last in a whole file
_RUN_ID = "run.json"
_FOLDERS = ("checkpoints", "logs", "policies")
_END_IT = "end it"


@dataclass(frozen=True)
class RunDir:
    """A run's folder on this machine, and, if the run lives at a URI, where that is."""

    folder: Path
    remote: Remote | None = None

    @property
    def name(self) -> str:
        """What people call the run by: its URI or its folder."""
        return str(self.folder) if self.remote is None else self.remote.uri

    def send(self, file: str) -> None:
        """Copy a file of the folder to the URI, if there is one. Raises `UserError` when that cannot be done."""
        if self.remote is not None:
            Store(self.remote.uri).upload(self.folder / file, file)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the run for this process while the block lasts. Raises `UserError` where another one goes on with it."""
        if self.remote is None:
            with outputs.alone_in(self.folder, _END_IT):
                yield
        else:
            with outputs.leased(Store(self.remote.uri), self.remote.uri, _END_IT):
                yield

    def has_begun(self) -> bool:
        """True once there is something of the run to go on with or to look at."""
        return outputs.is_there(self.folder, outputs.RUN)

    def way_on(self, stays: bool = False) -> str:
        """What goes on with the run once it has broken off, for people.

        stays  the place is left as it is, whatever was made there; else one that holds nothing to go on with is not.
        """
        checkpoints = run_checkpoints(self.folder, 1, self.remote, lambda text: None)
        if checkpoints.has_any() or (self.folder / "model" / "config.json").is_file():
            return f"`{resume_command(self.name)}`"
        if stays or self.has_begun():
            return f"`{resume_command(self.name, '--restart')}`"
        return "the same command"

    def emptied(self, names: Iterable[str]) -> "RunDir":
        """The same run without the files and folders `names`; at a URI under a new id, as other machines must forget
        what they hold of it.
        """
        if self.remote is None:
            for name in names:
                path = self.folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            for folder in _FOLDERS:
                (self.folder / folder).mkdir(exist_ok=True)
            return self
        store = Store(self.remote.uri)
        store.write(_RUN_ID, json.dumps({"id": uuid.uuid4().hex}).encode())
        for name in names:
            store.remove(name)
        return _open_at_uri(self.remote.uri)

    def fetch_model(self) -> None:
        """Get the final model if another machine trained it."""
        folder = self.folder / "model"
        if self.remote is None or folder.exists():
            return
        store = Store(self.remote.uri)
        folder.mkdir()
        for name in store.names("model"):
            store.download(f"model/{name}", folder / name)


@contextlib.contextmanager
def new_run(config: RunConfig, overwrite: bool = False) -> Iterator[RunDir]:
    """The run's folder (readable by its owner only) or its URI, made, with `config.yaml` in it.

    If the block fails before anything was trained, the place is left as it was found. `overwrite` replaces an earlier
    run in a folder. Raises `UserError` where the place holds anything else, or a run: resuming is explicit.
    """
    if config.run_dir is not None and is_uri(config.run_dir):
        with _new_at_uri(config, config.run_dir.rstrip("/"), overwrite) as run:
            yield run
        return
    path = outputs.check_folder(config.run_dir or _unused(config.name), outputs.RUN, overwrite, resumes=True)
    if not overwrite and outputs.is_there(path, outputs.RUN):
        raise _taken(RunDir(path), _text(path / CONFIG), config)
    with outputs.taken_folder(path, outputs.RUN, overwrite, private=True):
        try:
            for folder in _FOLDERS:
                (path / folder).mkdir()
            outputs.write_file(path / CONFIG, config.to_yaml().encode())
        except OSError as error:
            raise UserError(f"cannot make the run directory {path}: {reason(error)}") from error
        yield RunDir(path)


def open_run(place: str | os.PathLike[str]) -> tuple[RunDir, RunConfig]:
    """An existing run, in a folder or at a URI, and its configuration. Raises `UserError` when there is no run."""
    if isinstance(place, str) and is_uri(place):
        run = _open_at_uri(place.rstrip("/"))
    else:
        run = RunDir(outputs.absolute(place))
    if not (run.folder / CONFIG).is_file():
        raise UserError(f"{run.folder} holds no run: it has no {CONFIG}")
    try:
        values = read_yaml(run.folder / CONFIG)
    except UserError as error:
        raise UserError(f"{run.name}/{CONFIG} is damaged and cannot be read as YAML") from error
    if not isinstance(values, dict) or _LAST not in values:
        raise UserError(f"{run.name}/{CONFIG} is damaged: it breaks off before '{_LAST}'")
    try:
        return run, load_settings(RunConfig, values)
    except UserError as error:
        raise UserError(f"{run.name}/{CONFIG}: {error}") from error


def remembered_blocks(folder: Path) -> dict[str, str] | None:
    """Folder or URI (`blocks`) and `digest` of the blocks that the run in `folder` trains on; None if it names none.

    Raises `UserError` where the file that says so is damaged.
    """
    file = folder / BLOCKS
    if not file.is_file():
        return None
    try:
        said = outputs.read_json(file)
    except UserError:
        said = None
    if not isinstance(said, dict) or not all(isinstance(said.get(key), str) for key in ("blocks", "digest")):
        raise UserError(f"{file} is damaged; remove it and resume the run: it is written again")
    return said


@contextlib.contextmanager
def _new_at_uri(config: RunConfig, uri: str, overwrite: bool) -> Iterator[RunDir]:
    store = Store(uri)
    if overwrite:
        raise UserError(f"--overwrite replaces folders of this machine, not {uri}; choose another run_dir")
    outputs.check_names(uri, store.names(""), store.has, outputs.RUN, resumes=True)
    with outputs.leased(store, uri, "choose another run_dir"), _begun_at_uri(config, store) as run:
        yield run


@contextlib.contextmanager
def _begun_at_uri(config: RunConfig, store: Store) -> Iterator[RunDir]:
    uri = store.uri
    there = store.read(CONFIG)
    if there is not None:  # also of a start that was killed: from here it cannot be told from one under way
        raise _taken(_open_at_uri(uri), there.decode(errors="replace"), config)
    remote = Remote(uri, uuid.uuid4().hex)
    try:
        store.write(_RUN_ID, json.dumps({"id": remote.run_id}).encode())
        store.write(CONFIG, config.to_yaml().encode())  # last: it is what makes the place a run
        run = RunDir(remote.folder(), remote)
        (run.folder / CONFIG).write_text(config.to_yaml())
        yield run
    except CrashError:
        raise
    except BaseException:
        with contextlib.suppress(StorageError):  # it is not the error to tell of
            if not any(store.has(result) for result in outputs.RUN.results):
                for name in (CONFIG, _RUN_ID, BLOCKS, HISTORY, REPORT, "logs"):
                    store.remove(name)
                shutil.rmtree(remote.place, ignore_errors=True)
        raise


def _open_at_uri(uri: str) -> RunDir:
    """The run at `uri`, with what this machine needs to go on with it."""
    store = Store(uri)
    config = store.read(CONFIG)
    if config is None:
        raise UserError(f"{uri} holds no run: it has no {CONFIG}")
    identity = store.read(_RUN_ID)
    if identity is None:  # a run's folder that somebody copied there
        identity = json.dumps({"id": uuid.uuid4().hex}).encode()
        store.write(_RUN_ID, identity)
    try:
        remote = Remote(uri, str(json.loads(identity)["id"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{uri}/{_RUN_ID} is damaged; remove it and resume again") from error
    run = RunDir(remote.folder(), remote)
    (run.folder / CONFIG).write_bytes(config)
    blocks = store.read(BLOCKS)
    if blocks is not None:
        (run.folder / BLOCKS).write_bytes(blocks)
    return run


def _taken(run: RunDir, there: str, config: RunConfig) -> UserError:
    whose = "this very configuration" if there == config.to_yaml() else "another configuration"
    replace = "" if run.remote else "replace it with --overwrite, "
    return UserError(
        f"{run.name} holds a run of {whose}; go on with it by {run.way_on(stays=True)}, {replace}or choose another "
        "run_dir"
    )


def _unused(name: str) -> Path:
    path = Path.cwd() / "runs" / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    candidate, count = path, 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}-{count}")
    return candidate


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
