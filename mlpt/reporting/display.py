"""What a person sees while a run goes on: a live panel on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mlpt.logs import Event
from mlpt.reporting.text import has_bars, plain_console, printable, say

_SECONDS_BETWEEN_LINES = 10.0


class Display:
    """Takes the loop's events, whatever process they come from, and shows them. Use it as a context manager."""

    def __init__(
        self,
        mode: Literal["auto", "bar", "lines", "off"] = "auto",
        console: Console | None = None,
        also: Callable[[Event], None] = lambda event: None,
    ):
        """`also` hears every event, after it was shown."""
        self._also = also
        self.console = console or plain_console(stderr=True)
        self.mode = ("bar" if has_bars(self.console) else "lines") if mode == "auto" else mode
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
            expand=True,
        )
        self._task = self._progress.add_task("pretraining", total=None, rate="", left="")
        self._live: Live | None = None
        self._doing = ""
        self._latest: dict[str, Any] = {}
        self._last_line = 0.0
        self._begun: tuple[float, int] | None = None

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exception: object) -> None:
        self._doing = ""
        self._close()

    def say(self, text: str, whole: bool = False) -> None:
        """One line that stays, in every mode; see `mlpt.reporting.text.say`."""
        say(text, self.console, whole)

    def doing(self, text: str) -> None:
        """What goes on from now on, until the next step or the next such line: nobody shall look at a blank screen."""
        self._doing = text
        if self.mode == "bar":
            self._show()
        elif self.mode == "lines":
            self.say(f"{text} ...")

    @contextlib.contextmanager
    def bytes_done(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for work that is measured in bytes: call what this yields with (bytes done, bytes of all)."""
        if self.mode != "bar":
            yield lambda done, total: None
            return
        self._doing = ""
        self._close()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), _TimeLeft())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    @contextlib.contextmanager
    def rows_done(self, what: str, unit: str) -> Iterator[Callable[[int, int, int], None]]:
        """Progress of counted work: call what this yields with (done now, done in all, all); what an earlier process
        did is in the second count alone."""
        begun = time.monotonic()

        def rate(now: int, done: int, total: int) -> str:
            seconds = time.monotonic() - begun
            left = seconds * (total - done) / now if now else 0.0
            return f"{now / max(seconds, 1e-9):,.0f} {unit}/s, left {left // 60:.0f}:{left % 60:02.0f}"

        def line(now: int, done: int, total: int) -> None:
            clock = time.monotonic()
            if not now and done < total:
                return  # the work begins
            if done == total or clock - self._last_line >= _SECONDS_BETWEEN_LINES:
                self._last_line = clock
                self.say(f"{what}: {done:,} of {total:,} {unit}, {rate(now, done, total)}")

        if self.mode != "bar":
            yield line if self.mode == "lines" else lambda now, done, total: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=None, rate="")
            yield lambda now, done, total: progress.update(
                task, completed=done, total=total, rate=rate(now, done, total)
            )

    def handle(self, event: Event) -> None:
        """Show one event of the loop."""
        kind = event["event"]
        if kind == "step":
            self._step(event)
        elif kind == "doing":
            self.doing(event["text"])
        elif kind == "warning":
            self.say(f"warning: {event['text']}")
        elif kind == "resumed":
            self.say(f"resumed at step {event['step']}")
        elif kind == "policy":
            self._latest["policy"] = event["policy"]
        self._also(event)

    def _step(self, event: Event) -> None:
        now = time.monotonic()
        if self._begun is None or event["step"] < self._begun[1]:
            self._begun = (now, event["step"])
        self._latest.update(event)
        self._doing = ""
        if self.mode == "bar":
            rate, left = f"{event['tokens_per_second']:,.0f} tokens/s", f"left {self._left(event)}"
            self._progress.update(self._task, total=event["steps"], completed=event["step"], rate=rate, left=left)
            self._show()
        elif self.mode == "lines":
            done = event["step"] == event["steps"]
            if done or now - self._last_line >= _SECONDS_BETWEEN_LINES:
                self._last_line = now
                self.say(self._line(event))

    def _show(self) -> None:
        if self._live is None:
            self._live = Live(self._panel(), console=self.console, refresh_per_second=4)
            self._live.start(refresh=True)
        self._live.update(self._panel(), refresh=bool(self._doing))

    def _close(self) -> None:
        if self._live is not None:
            self._live.transient = not self._latest  # before the first step there is nothing worth keeping
            self._live.update(self._panel(), refresh=True)
            self._live.stop()
            self._live = None

    def _panel(self) -> Group:
        parts: list[RenderableType] = []
        if self._latest:
            parts += [self._progress, self._table(), self._about_policy()]
        if self._doing:
            parts.append(Spinner("dots", Text(printable(self._doing))))
        return Group(*parts)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("objective", "share", "loss (nats)"):
            table.add_column(heading, justify="left" if heading == "objective" else "right")
        for name, share in self._latest.get("mixture", {}).items():
            loss = self._latest.get("loss", {}).get(name)
            table.add_row(Text(printable(name)), f"{share:.3f}", "" if loss is None else f"{loss:.4f}")
        return table

    def _about_policy(self) -> Text:
        waited = self._latest.get("meta_stall_seconds", 0)
        return Text(f"policy {self._latest.get('policy', 0)}, waited {waited:.1f} s for it")

    def _line(self, event: Event) -> str:
        losses = " ".join(f"{name} {loss:.3f}" for name, loss in event["loss"].items())
        mixture = " ".join(f"{name} {share:.2f}" for name, share in event["mixture"].items())
        return (
            f"step {event['step']}/{event['steps']}  {event['tokens_per_second']:,.0f} tokens/s  loss: {losses}  "
            f"mixture: {mixture}  meta wait {event['meta_stall_seconds']:.1f} s  left {self._left(event)}"
        )

    def _left(self, event: Event) -> str:
        assert self._begun is not None
        since, first = self._begun
        done = event["step"] - first
        if done <= 0:
            return "?"
        seconds = (time.monotonic() - since) / done * (event["steps"] - event["step"])
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


class _TimeLeft(ProgressColumn):
    """The time left, with a word that says so."""

    def __init__(self) -> None:
        super().__init__()
        self._time = TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        return Text("left ").append_text(self._time.render(task))
