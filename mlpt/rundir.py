"""A run's folder: found or made, private, holding the resolved configuration that repeats the run."""

import errno
import os
from datetime import datetime
from pathlib import Path

import yaml

from mlpt.config import RunConfig
from mlpt.errors import UserError
from mlpt.settings import load_settings

CONFIG = "config.yaml"


def new_run_dir(config: RunConfig) -> Path:
    """Make the run's folder (readable by its owner only) and write `config.yaml` into it.

    Raises `UserError` when the folder already holds a run: names are unique, and resuming is explicit.
    """
    if config.run_dir is not None:
        path = Path(config.run_dir).expanduser().resolve()
        if (path / CONFIG).exists():
            same = (path / CONFIG).read_text() == config.to_yaml()
            whose = "this very configuration" if same else "another configuration"
            raise UserError(
                f"{path} holds a run of {whose}; go on with it by `mlpt pretrain --resume {path}`, "
                "or choose another run_dir"
            )
    else:
        path = _unused(Path.cwd() / "runs" / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in ("checkpoints", "logs", "policies"):
            (path / folder).mkdir(exist_ok=True)
        (path / CONFIG).write_text(config.to_yaml())
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose another run_dir"
        raise UserError(f"cannot make the run directory {path} ({error.strerror}); {hint}") from error
    return path


def open_run(folder: str | os.PathLike[str]) -> tuple[Path, RunConfig]:
    """An existing run's folder and its configuration. Raises `UserError` when there is no run."""
    path = Path(folder).expanduser().resolve()
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} holds no run: it has no {CONFIG}")
    try:
        values = yaml.safe_load((path / CONFIG).read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path / CONFIG} is damaged and cannot be read as YAML") from error
    return path, load_settings(RunConfig, values or {}, str(path / CONFIG))


def _unused(path: Path) -> Path:
    candidate, count = path, 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}-{count}")
    return candidate
