"""Ending a run by a signal without losing what it did.

SIGINT or SIGTERM lets training finish the step under way and write a checkpoint; one more of them ends the process at
once. While nothing trains there is nothing to save, and the first signal ends it too.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunStopped(Exception):  # noqa: N818 (nothing is wrong)
    """Training has ended before its last step, as it was asked to; `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


class Stopped(KeyboardInterrupt):
    """A signal has ended the run. The text is one line for people: where it stands and how to go on."""

    def __init__(self, number: int, text: str = ""):
        super().__init__(text)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal has ended: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class StopRequest:
    """Whether a signal, or a callback, has asked this process to stop. Handlers are in the main thread alone."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._number: int | None = None
        self._asked = False
        self._trains = False

    def __call__(self) -> bool:
        return self._asked or self.signalled

    def ask(self) -> None:
        """Let training finish the step under way and end with a checkpoint, as after a first signal."""
        self._asked = True

    @property
    def signalled(self) -> bool:
        """Whether it was a signal."""
        return self._number is not None

    @property
    def number(self) -> int:
        """The signal that came first; SIGINT if none did."""
        return self._number or signal.SIGINT

    @property
    def name(self) -> str:
        """Its name, such as SIGTERM; or that it was a callback."""
        return signal.Signals(self.number).name if self.signalled or not self._asked else "a callback"

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Heed signals while the block lasts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals (back: starting Ray takes SIGTERM for itself)."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """While the block lasts, the first signal only asks: whoever trains looks for it after each step."""
        self._trains = True
        try:
            yield
        finally:
            self._trains = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
            os._exit(128 + number)
        self._number = number
        if not self._trains:
            raise Stopped(number)
        with contextlib.suppress(RuntimeError):  # the signal came while this very thread was printing
            self._say("stopping after this step, with a checkpoint; once more ends at once")
