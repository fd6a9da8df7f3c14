"""What is written about a run beside its results: its history while it goes on, and its report at the end."""

import contextlib
from collections.abc import Iterator

from rich.console import Console

from mlpt.data.store import Store
from mlpt.errors import UserError, one_line
from mlpt.reporting.history import HISTORY, REPORT, recorded
from mlpt.reporting.text import say
from mlpt.rundir import RunDir


@contextlib.contextmanager
def written_up(run: RunDir, step: int, html: bool, console: Console) -> Iterator[None]:
    """Keep the history of `run`, which goes on from `step`, while the block lasts; then, with `html`, make its report.

    Neither is a reason for a run to fail: what cannot be written is one line of warning.
    """
    history = run.folder / HISTORY
    if step and run.remote is not None and not history.exists():
        with contextlib.suppress(UserError):
            Store(run.remote.uri).download(HISTORY, history)
    try:
        with recorded(run.folder, step):
            _send(run, HISTORY, console)
            yield
    finally:
        if history.exists() and run.has_begun():
            _send(run, HISTORY, console)
            if html:
                _report(run, console)


def _report(run: RunDir, console: Console) -> None:
    try:
        from mlpt.reporting.report import write_report  # the plotting library: half a second

        write_report(run.name, run.folder)
    except Exception as error:
        say(f"warning: no report was made ({one_line(error)}); try `mlpt report {run.name}`", console)
        return
    _send(run, REPORT, console)
    say(f"report: {run.name}/{REPORT}", console, whole=True)


def _send(run: RunDir, file: str, console: Console) -> None:
    try:
        run.send(file)
    except UserError as error:
        say(f"warning: {error}", console)
