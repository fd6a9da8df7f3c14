"""`mlpt report`, `runs` and `watch`: looking at runs. Parse, call, print."""

from contextlib import suppress
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from mlpt import outputs
from mlpt.cli_options import Overwrite
from mlpt.reporting.text import say, show_table


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN|SWEEP|STUDY...", help="folders or URIs of runs, one sweep, or one study")
    ],
    out: Annotated[
        str | None, typer.Option(help="the HTML file; default: report.html in the run, or here for several")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """One HTML page that needs no network: a run, several side by side, a sweep or a study; at any time."""
    from mlpt.reporting.report import place_of_report, report_page

    own = place_of_report(runs) if out is None else None
    file = outputs.check_file(out or "report.html", overwrite, _is_report) if own is None else own
    outputs.write_file(file, report_page(runs).encode())
    say(str(file))


def _is_report(path: Path) -> bool:
    from mlpt.reporting.report import is_report

    return is_report(path)


def runs(
    folder: Annotated[str, typer.Argument(help="a folder or URI that runs are in")] = "runs",
    json: Annotated[bool, typer.Option("--json", help="print a list of JSON objects instead of a table")] = False,
) -> None:
    """The runs below a folder: state, steps, tokens, time, losses and mixture of each."""
    from mlpt.reporting.run_list import described, find_runs, table_of

    found = described(find_runs(folder))
    if json:
        say(dumps(found, indent=1), whole=True)
    else:
        show_table(table_of(found, folder), stderr=False)


def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="the folder or URI of a run, or of a sweep with --html")],
    html: Annotated[
        bool, typer.Option("--html", help="serve the report on this machine's loopback address, until Ctrl-C")
    ] = False,
    port: Annotated[int, typer.Option(help="with --html: the port; 0: one that is free", min=0, max=65535)] = 0,
) -> None:
    """Follow a run from any terminal, until it ends; what watches does not disturb it."""
    if not html:
        from mlpt.reporting.display import Display
        from mlpt.reporting.following import follow

        with Display() as display:
            follow(run, display)
        return
    from mlpt.reporting.serving import ReportServer

    with ReportServer([run], port) as server:
        say(f"open {server.url} in a browser of this machine; Ctrl-C ends it", whole=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
