"""Seconds that add up over resumes: a checkpoint holds them, and the run that goes on from it counts on."""

import time


class Stopwatch:
    """Counts while it runs. `seconds` may be set to what an earlier part of the run took."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self._counted, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        return self._counted + (0.0 if self._since is None else time.perf_counter() - self._since)

    @seconds.setter
    def seconds(self, counted: float) -> None:
        self._counted = counted
