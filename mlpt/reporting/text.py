"""The one way to print: what users named (paths, settings, texts) is shown as it is, never read as markup."""

import sys
import textwrap
import unicodedata
from importlib.util import find_spec
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text


def plain_console(*, stderr: bool = False, **options: Any) -> Console:
    """A console that takes no text for markup, emoji codes or something to be coloured."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, **options)


def has_bars(console: Console) -> bool:
    """True where a progress bar can be redrawn: on a terminal, and in a notebook that has ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def say(text: str, console: Console | None = None, whole: bool = False) -> None:
    """Print `text`; long lines are broken between words on a terminal, and nowhere else.

    console  default: standard output.
    whole    break no line: something to be copied stands in it.
    """
    console = console or plain_console()
    lines = printable(text).split("\n")
    if console.is_terminal and not whole:
        lines = [part for line in lines for part in _wrapped(line, console.width)]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def show_table(table: Table, stderr: bool = True) -> None:
    """Print a table; its cells are `Text` wherever users named what stands in them. A file has no width."""
    console = plain_console(stderr=stderr)
    if not stderr and not console.is_terminal:
        console.width = 400
    console.print(table)


def say_error(text: str, stream: TextIO | None = None) -> None:
    """`mlpt: TEXT` on standard error, or a stream in its place, in one line."""
    say(f"mlpt: {' '.join(text.split())}", plain_console(stderr=True, file=stream))


def printable(text: str) -> str:
    """`text` with control characters and broken halves of characters written out: a file may be called anything."""
    return "".join(one if one == "\n" or not _is_hidden(one) else _escaped(one) for one in text)


def never_fail_to_encode() -> None:
    """Let standard output write out what its encoding has no letter for, as standard error does."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _is_hidden(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _wrapped(line: str, width: int) -> list[str]:
    parts = textwrap.wrap(
        line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    return parts or [""]
