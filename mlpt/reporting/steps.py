"""Progress of work that counts steps, such as the cells of a fine-tuning: a bar on a terminal, lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from mlpt.reporting.text import has_bars, plain_console, say

_SECONDS_BETWEEN_LINES = 10.0


class Steps:
    """Shows one piece of work after another on `console` (default: standard error). Use it as a context manager."""

    def __init__(self, console: Console | None = None):
        self.console = console or plain_console(stderr=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=self.console)
        self._bar.live.transient = True
        self._task: TaskID | None = None
        self._what = ""
        self._begun = (0.0, 0)  # when the work at hand was first shown, and how far it was
        self._last_line = 0.0

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def show(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `what`, with a word on how it goes; the time left is worked out here."""
        now = time.monotonic()
        if what != self._what:
            self.clear()
            self._what, self._begun, self._last_line = what, (now, done), now
        told = ", ".join(part for part in (note, f"time left {self._left(now, done, total)}") if part)
        if has_bars(self.console):
            self._draw(done, total, told)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(f"{what}: step {done}/{total}, {told}", self.console)

    def clear(self) -> None:
        """Take the bar away, before something else is printed; it comes back with the next `show`."""
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None

    def _draw(self, done: int, total: int, note: str) -> None:
        if self._task is None:
            self._task = self._bar.add_task(self._what, total=total, note=note)
            self._bar.start()
        self._bar.update(self._task, completed=done, note=note)

    def _left(self, now: float, done: int, total: int) -> str:
        since, first = self._begun
        if done <= first:
            return "?"
        seconds = (now - since) / (done - first) * (total - done)
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"
