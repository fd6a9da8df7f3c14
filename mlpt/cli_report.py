"""`mlpt report`, `runs` and `watch`: looking at runs. Parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

from mlpt import outputs
from mlpt.cli_options import Overwrite
from mlpt.reporting.text import say


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN|SWEEP...", help="folders or URIs of runs, or one sweep")],
    out: Annotated[
        str | None, typer.Option(help="the HTML file; default: report.html in the run, or here for several")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """One HTML page that needs no network: a run, several side by side, or a sweep; at any time, also during a run."""
    from mlpt.reporting.report import place_of_report, report_page

    own = place_of_report(runs) if out is None else None
    file = outputs.check_file(out or "report.html", overwrite, _is_report) if own is None else own
    outputs.write_file(file, report_page(runs).encode())
    say(str(file))


def _is_report(path: Path) -> bool:
    from mlpt.reporting.report import is_report

    return is_report(path)
