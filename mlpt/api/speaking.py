"""Where functions that are called from Python say what they do: standard error, or nowhere."""

from collections.abc import Callable
from functools import partial

from rich.console import Console

from mlpt.reporting.text import plain_console, say


def console_of(quiet: bool) -> Console:
    """Standard error; with `quiet` a console that shows nothing."""
    return plain_console(stderr=True, quiet=quiet)


def speaker(quiet: bool) -> Callable[[str], None]:
    """Says a line there."""
    return partial(say, console=console_of(quiet))
