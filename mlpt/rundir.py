"""Where a run lies: a folder or a URI, found or made, private, with the resolved configuration that repeats the run."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from mlpt.config import RunConfig
from mlpt.data.store import Store, is_uri
from mlpt.errors import UserError, resume_command
from mlpt.settings import load_settings
from mlpt.training.mirror import Remote

CONFIG = "config.yaml"
_BLOCKS = "blocks.json"
_RUN_ID = "run.json"
_FOLDERS = ("checkpoints", "logs", "policies")


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


def new_run_dir(config: RunConfig) -> RunDir:
    """Make the run's folder (readable by its owner only) or claim its URI, and write `config.yaml` there.

    Raises `UserError` when there already is a run: names are unique, and resuming is explicit.
    """
    if config.run_dir is not None and is_uri(config.run_dir):
        return _new_at_uri(config, config.run_dir.rstrip("/"))
    if config.run_dir is not None:
        path = Path(config.run_dir).expanduser().resolve()
        if (path / CONFIG).exists():
            raise _taken(str(path), (path / CONFIG).read_text(), config)
    else:
        path = _unused(Path.cwd() / "runs" / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in _FOLDERS:
            (path / folder).mkdir(exist_ok=True)
        (path / CONFIG).write_text(config.to_yaml())
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose another run_dir"
        raise UserError(f"cannot make the run directory {path} ({error.strerror}); {hint}") from error
    return RunDir(path)


def open_run(place: str | os.PathLike[str]) -> tuple[RunDir, RunConfig]:
    """An existing run, in a folder or at a URI, and its configuration. Raises `UserError` when there is no run."""
    if isinstance(place, str) and is_uri(place):
        run = _open_at_uri(place.rstrip("/"))
    else:
        run = RunDir(Path(place).expanduser().resolve())
    if not (run.folder / CONFIG).is_file():
        raise UserError(f"{run.folder} holds no run: it has no {CONFIG}")
    try:
        values = yaml.safe_load((run.folder / CONFIG).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{run.name}/{CONFIG} is damaged and cannot be read as YAML") from error
    return run, load_settings(RunConfig, values or {}, f"{run.name}/{CONFIG}")


def _new_at_uri(config: RunConfig, uri: str) -> RunDir:
    store = Store(uri)
    there = store.read(CONFIG)
    if there is not None:
        raise _taken(uri, there.decode(errors="replace"), config)
    if store.names("checkpoints"):
        raise UserError(f"{uri} holds checkpoints of a run without a {CONFIG}; remove them, or choose another run_dir")
    remote = Remote(uri, uuid.uuid4().hex)
    store.write(_RUN_ID, json.dumps({"id": remote.run_id}).encode())
    store.write(CONFIG, config.to_yaml().encode())  # last: it is what makes the place a run
    run = RunDir(remote.folder(), remote)
    (run.folder / CONFIG).write_text(config.to_yaml())
    return run


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
    blocks = store.read(_BLOCKS)
    if blocks is not None:
        (run.folder / _BLOCKS).write_bytes(blocks)
    return run


def _taken(place: str, there: str, config: RunConfig) -> UserError:
    whose = "this very configuration" if there == config.to_yaml() else "another configuration"
    return UserError(
        f"{place} holds a run of {whose}; go on with it by `{resume_command(place)}`, or choose another run_dir"
    )


def _unused(path: Path) -> Path:
    candidate, count = path, 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}-{count}")
    return candidate
