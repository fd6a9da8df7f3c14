"""A run as a notebook shows it: a small table, and its report in a frame where the browser can reach the file."""

from html import escape
from pathlib import Path
from urllib.parse import quote

from mlpt.reporting.history import REPORT
from mlpt.reporting.records import Record


def run_as_html(record: Record, folder: Path) -> str:
    """Losses and mixture of the run by arm, what it did so far, and the report in `folder`, if there is one.

    A notebook's browser reads files from the notebook's own folder on: a report there is shown inline, and one
    elsewhere by its path.
    """
    headings = ("", "held-out before", "held-out after", "training loss", "mixture at start", "mixture now")
    before, after = record.newest("held_out_before"), record.newest("held_out")
    columns = (before, after, record.newest("loss"), record.first_mixture, record.mixture)
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(_number(column.get(name)) for column in columns)] for name in names]
    facts = f"{record.state}, {record.steps:,} steps, {record.tokens:,} tokens; losses in nats"
    return "".join(
        [
            f"<p><b>{escape(record.name)}</b>: {facts}</p>",
            _table(headings, rows),
            _report(folder / REPORT),
        ]
    )


def _table(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _report(file: Path) -> str:
    if not file.is_file():
        return ""
    try:
        link = escape(quote(file.resolve().relative_to(Path.cwd().resolve()).as_posix()))
    except ValueError:
        return f"<p>report: {escape(str(file))}</p>"
    frame = f'<iframe src="{link}" title="report of the run" loading="lazy" style="width:100%;height:40em"></iframe>'
    return (
        f'<p>report: <a href="{link}">{escape(file.name)}</a></p><details><summary>show it</summary>{frame}</details>'
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
