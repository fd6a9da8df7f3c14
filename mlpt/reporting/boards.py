"""Where a run's numbers also go: TensorBoard, MLflow, Weights & Biases, trackio; each imported when it is switched on.

A board that fails while a run trains costs a line of warning and nothing else; one whose package is missing is told
before the run begins. A resumed run goes on in the same record; the steps since its last checkpoint come again.
"""

import io
import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from mlpt.errors import UserError, one_line
from mlpt.settings import Settings

RECORDS = "boards.json"  # in the run's folder: under which id each board knows the run
_PACKAGES = ("mlflow", "wandb", "trackio")  # each called like its setting


class BoardSettings(Settings):
    """Where numbers go besides `metrics.jsonl`."""

    tensorboard: bool = Field(True, description="event files in the run's folder, for TensorBoard")
    mlflow: str | None = Field(
        None, description="tracking server or store: http://HOST:5000, sqlite:///mlflow.db; needs mlflow"
    )
    wandb: Literal["offline", "online"] | None = Field(
        None, description="Weights & Biases; offline: in the run's folder, for `wandb sync`; needs wandb"
    )
    trackio: bool = Field(False, description="a local trackio project of the run's name; needs trackio")


class Board(Protocol):
    """A place for numbers."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record finite numbers of `step`."""

    def close(self, finished: bool) -> None:
        """The run has ended, by itself or not."""


def check_boards(settings: BoardSettings) -> None:
    """Raise `UserError` where a package is missing that a setting needs."""
    for package in _PACKAGES:
        if getattr(settings, package) and find_spec(package) is None:
            raise UserError(f"report.{package} needs a package: pip install {package}")


class Boards:
    """The boards of one run. A board that fails is left alone from then on.

    name    what boards call the project or experiment; the run is called by its folder.
    config  settings for those that show them.
    """

    def __init__(self, settings: BoardSettings, name: str, config: Mapping[str, Any]):
        self._settings, self._name, self._config = settings, name, config
        self._warn: Callable[[str], None] = lambda text: None
        self._open: dict[str, Board] = {}

    def open(self, run_dir: Path, resumed_at: int, warn: Callable[[str], None]) -> None:
        """Begin to record, or go on; `warn` is told in one line what has failed. Raises `UserError` where a package
        is missing."""
        check_boards(self._settings)
        self._warn = warn
        known = _read(run_dir / RECORDS) if resumed_at else {}
        kinds: dict[str, Callable[[], Board]] = {
            "tensorboard": lambda: _TensorBoard(run_dir, resumed_at),
            "mlflow": lambda: _Mlflow(self._settings.mlflow or "", self._name, run_dir, self._config, known),
            "wandb": lambda: _Wandb(self._settings.wandb or "offline", self._name, run_dir, self._config, known),
            "trackio": lambda: _Trackio(self._name, run_dir, self._config, known),
        }
        for kind, make in kinds.items():
            if getattr(self._settings, kind):
                with self._tolerant(kind):
                    self._open[kind] = make()
        if known:
            (run_dir / RECORDS).write_text(json.dumps(known))

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers in `values`; nested mappings of numbers become `a/b`."""
        numbers = {name: number for name, number in _flat(values) if math.isfinite(number)}
        for kind, board in list(self._open.items()):
            with self._tolerant(kind):
                board.add(step, numbers)

    def close(self, finished: bool) -> None:
        """End the records."""
        for kind, board in list(self._open.items()):
            with self._tolerant(kind):
                board.close(finished)
        self._open = {}

    @contextmanager
    def _tolerant(self, kind: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of somebody else's program
            self._open.pop(kind, None)
            self._warn(f"report.{kind} has failed and is left out from here on: {one_line(error)}")


class _TensorBoard:
    def __init__(self, run_dir: Path, resumed_at: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every run wants it

        # What stands there of later steps comes again; that of the checkpoint's own step does not.
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self, finished: bool) -> None:
        self._writer.close()


class _Mlflow:
    """An experiment of the run's name on the server or in the store `place`."""

    def __init__(self, place: str, name: str, run_dir: Path, config: Mapping[str, Any], known: dict[str, str]):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # numbers go where they were sent, and nowhere else
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient(tracking_uri=place)
        if "mlflow" not in known:
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
            run = self._client.create_run(experiment, run_name=run_dir.name)
            known["mlflow"] = run.info.run_id
            params = [Param(_plain(key), str(value)[:500]) for key, value in _leaves(config)]
            for first in range(0, len(params), 100):
                self._client.log_batch(run.info.run_id, params=params[first : first + 100])
        self._run = known["mlflow"]
        self._client.update_run(self._run, status="RUNNING")

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(_plain(name), number, now, step) for name, number in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, status="FINISHED" if finished else "KILLED")


class _Wandb:
    def __init__(self, mode: str, name: str, run_dir: Path, config: Mapping[str, Any], known: dict[str, str]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        known.setdefault("wandb", uuid.uuid4().hex[:8])
        places: dict[str, Any] = {"dir": str(run_dir), "id": known["wandb"], "resume": "allow", "mode": mode}
        quiet = wandb.Settings(console="off", silent=True)
        self._run: Any = wandb.init(project=name, name=run_dir.name, config=dict(config), settings=quiet, **places)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _Trackio:
    def __init__(self, name: str, run_dir: Path, config: Mapping[str, Any], known: dict[str, str]):
        import trackio

        known.setdefault("trackio", f"{run_dir.name}-{uuid.uuid4().hex[:6]}")
        said: dict[str, Any] = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
        with redirect_stdout(io.StringIO()):  # it prints how to look at it
            self._run: Any = trackio.init(name, known["trackio"], config=dict(config), resume="allow", **said)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, finished: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, Sequence) or isinstance(value, str) or value:
            yield f"{prefix}{name}", value


def _plain(name: str) -> str:
    """MLflow takes letters, digits and a few signs."""
    return re.sub(r"[^\w\-. /:]", "-", name)


def _read(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(kind): str(name) for kind, name in known.items()} if isinstance(known, dict) else {}
