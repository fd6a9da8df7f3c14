"""A run as a value: its settings, its figures as tables, its model and its report, however far it has come."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mlpt.config import RunConfig
from mlpt.errors import UserError
from mlpt.reporting.history import REPORT, State
from mlpt.reporting.notebook import run_as_html
from mlpt.reporting.records import FolderReader, Record, read_run
from mlpt.reporting.tables import metrics_table, mixtures_table
from mlpt.run.folder import open_run
from mlpt.run.resuming import SUMMARY
from mlpt.run.saved import resolve_model
from mlpt.storage.store import is_uri

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Run:
    """A run that lies in a folder or at a URI.

    folder   where it lies on this machine; of a run at a URI the working folder.
    summary  what it ended with, plain JSON values; empty until it is finished.
    name     its URI if it has one, else the folder.

    All else is read when it is asked for, so that a run under way shows what it has done so far. Raises `UserError`
    where something cannot be read.
    """

    folder: Path
    summary: dict[str, Any] = field(compare=False)
    name: str

    @cached_property
    def config(self) -> RunConfig:
        """All settings, resolved."""
        return open_run(self.name)[1]

    @property
    def state(self) -> State:
        """`running`, `stopped`, `finished` or `failed`."""
        return self._record().state

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row a step at which anything was logged, indexed by `step` (int64); a float64 column for each figure,
        such as `loss/mlm`, `mixture/mlm`, `dev/mlm`, `tokens`; NaN where it was not logged at that step."""
        return _frame(self.metrics_table, "step")

    @property
    def metrics_table(self) -> pa.Table:
        """The same as an Arrow table: `step` int64, all others float64 with nulls."""
        return metrics_table(self._record().metrics)

    @property
    def mixtures(self) -> "pd.DataFrame":
        """Every version of the mixture, indexed by `version`: the `step` at which training adopted it, and a column of
        probabilities for each arm. Version 0 is the one it began with."""
        return _frame(mixtures_table(FolderReader(self.name)), "version")

    def model(self, auto: Any = None) -> Any:
        """The model as transformers loads it, from the last whole checkpoint while the run is not finished.

        auto  the class that loads it, such as `AutoModelForMaskedLM`; None: `AutoModel`, without a head.
        """
        from transformers import AutoModel

        return (auto or AutoModel).from_pretrained(self._model_folder())

    def tokenizer(self) -> Any:
        """The tokenizer, as transformers loads it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._model_folder())

    def report(self) -> Path:
        """The HTML page of the run as it is now, in the run's folder."""
        from mlpt.reporting.report import write_report  # the plotting library: half a second

        write_report(self.name, self.folder)
        return self.folder / REPORT

    def _record(self) -> Record:
        return read_run(self.name)

    def _model_folder(self) -> str:
        if not is_uri(self.name):
            return resolve_model(str(self.folder))
        if FolderReader(self.name).read("model/config.json") is None:
            raise UserError(f"{self.name} has no model yet: it is not finished; go on with it on this machine first")
        run, _ = open_run(self.name)
        run.fetch_model()
        return str(run.folder / "model")

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {self.state})"

    def _repr_html_(self) -> str:
        """What a notebook shows: losses and mixture as a table, and the report, if there is one."""
        return run_as_html(self._record(), self.folder)


def name_of(model: "Run | str | os.PathLike[str]") -> str:
    """What a command calls the model that a function is given."""
    return model.name if isinstance(model, Run) else os.fspath(model)


def load_run(place: str | os.PathLike[str]) -> Run:
    """The run in a folder or at a URI, whatever its state. Raises `UserError` in one line where there is none."""
    run, _ = open_run(place)
    try:
        summary = json.loads(FolderReader(run.name).read(SUMMARY) or b"{}")
    except ValueError as error:
        raise UserError(f"{run.name}/{SUMMARY} is damaged; `mlpt pretrain --resume` makes it anew") from error
    return Run(run.folder, summary if isinstance(summary, dict) else {}, run.name)


def _frame(table: pa.Table, index: str) -> "pd.DataFrame":
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError("this table needs pandas: pip install pandas, or take run.metrics_table") from error
    values: Mapping[str, np.ndarray] = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return pd.DataFrame(values).set_index(index)
