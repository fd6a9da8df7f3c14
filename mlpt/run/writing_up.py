"""What is written about a run beside its results: its history while it goes on, then its report and model card."""

import contextlib
from collections.abc import Iterator

from rich.console import Console

from mlpt.errors import UserError, command, one_line
from mlpt.reporting.card import CARD, write_card
from mlpt.reporting.history import HISTORY, REPORT, recorded
from mlpt.reporting.records import read_run
from mlpt.reporting.text import say
from mlpt.run.folder import RunDir
from mlpt.storage.store import Store


@contextlib.contextmanager
def written_up(run: RunDir, step: int, html: bool, console: Console) -> Iterator[None]:
    """Keep the history of `run`, which goes on from `step`, while the block lasts; then write its
    model's card and, with `html`, its report.

    None of it is a reason for a run to fail: what cannot be written is one line of warning.
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
            if (run.folder / "model" / "config.json").is_file():
                _card(run, console)
            if html:
                _report(run, console)


def say_report(run: RunDir, console: Console) -> None:
    """Say where the report is, if this machine has it."""
    if (run.folder / REPORT).is_file():
        say(f"report: {run.name}/{REPORT}", console, whole=True)


def _card(run: RunDir, console: Console) -> None:
    try:
        write_card(run.folder / "model", read_run(run.name))
    except (OSError, UserError) as error:
        say(f"warning: no model card was written ({one_line(error)})", console)
        return
    _send(run, f"model/{CARD}", console)


def _report(run: RunDir, console: Console) -> None:
    try:
        from mlpt.reporting.report import write_report  # the plotting library: half a second

        write_report(run.name, run.folder)
    except Exception as error:
        say(f"warning: no report was made ({one_line(error)}); try `{command('report', run.name)}`", console)
        return
    _send(run, REPORT, console)
    say_report(run, console)


def _send(run: RunDir, file: str, console: Console) -> None:
    try:
        run.send(file)
    except UserError as error:
        say(f"warning: {error}", console)
