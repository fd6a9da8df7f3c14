"""Notices what hangs, as against what is dead: a process ends itself when its work stands still, its stacks in its log.

A rank that waits for ever in a collective and the rank that it waits for both stand still: each writes down where, and
the group starts again from its last checkpoint. A process that is stopped (SIGSTOP) can do nothing for itself: others
miss its answers.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import psutil

_BUSY = 0.05  # share of a core above which threads count as working
_PATIENCE = 10  # limits without progress that work and slow storage may take, and times as slow as seen before
_EXIT_CODE = 75  # EX_TEMPFAIL
_CAN_SEE = hasattr(time, "pthread_getcpuclockid")  # what threads compute: Linux
_log = logging.getLogger(__name__)


class Watch:
    """Ends this process when its work stands still for `limit` seconds: nothing beats, and no Python thread computes.

    What computes, or waits for slow storage, has ten times as long; so has, for each wait, what has waited before and
    gone on: the limit grows to ten times the longest time between two beats. None: nothing is watched.

    name   of what stands still, for people.
    log    gets the stacks of all threads.
    tell   hears one line before the end.
    group  seconds for which everyone else that this process may be waiting for has stood still, too.
    slow_storage  the files of the run are copied over a network, whose calls have limits of their own.
    """

    def __init__(
        self,
        limit: float | None,
        name: str,
        log: Path,
        tell: Callable[[str], None] = lambda text: None,
        group: Callable[[], float] = lambda: float("inf"),
        slow_storage: bool = False,
    ):
        self._limit = limit if _CAN_SEE else None
        self._name = name
        self._log = log
        self._tell = tell
        self._group = group
        self._slow_storage = slow_storage
        self._interval = 1.0 if limit is None else min(5.0, limit / 10)
        self._beat: tuple[float, int] | None = None  # when, by which thread
        self._looked = (time.monotonic(), _cpu_seconds())  # when, and what had been computed then
        self._busy = 0.0  # when something was last seen to compute
        self._repeats = False
        self._longest = 0.0  # time between two beats
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        if self._limit is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()

    def beat(self) -> None:
        """The calling thread has made progress, and is to make more of the same kind."""
        now, last = time.monotonic(), self._beat
        if last is not None and self._repeats:
            self._longest = max(self._longest, now - last[0])
        self._beat, self._repeats = (now, threading.get_ident()), True

    def begin(self) -> None:
        """The calling thread begins something else, which may take longer or shorter than what was before."""
        self._beat, self._repeats = (time.monotonic(), threading.get_ident()), False

    def rest(self) -> None:
        """Nothing is due until the next beat."""
        self._beat = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Something is due while the block lasts."""
        self.begin()
        try:
            yield
        finally:
            self.rest()

    @property
    def working(self) -> bool:
        """Whether something is due."""
        return self._beat is not None

    def still(self) -> float:
        """Seconds for which the work has stood still."""
        beat = self._beat
        return 0.0 if beat is None else time.monotonic() - max(beat[0], self._busy)

    def look(self) -> bool:
        """Look once, as the thread does every few seconds; whether this process is to end."""
        before, earlier = self._looked
        now, computed = self._looked = (time.monotonic(), _cpu_seconds())
        beat = self._beat
        if beat is None or self._limit is None:
            return False
        if now - before > 3 * self._interval:  # all of this process was stopped: nothing that stood still
            self._beat = (beat[0] + now - before, beat[1])
            return False
        if computed - earlier > _BUSY * (now - before) or (self._slow_storage and _in_storage(beat[1])):
            self._busy = now
        since = now - beat[0]
        if since > _PATIENCE * max(self._limit, self._longest):
            return True
        slow = since <= _PATIENCE * self._longest
        return not slow and self.still() > self._limit and self._group() > 0.8 * self._limit

    def _run(self) -> None:
        while not self._done.wait(self._interval):
            if self.look():
                self._end()

    def _end(self) -> None:
        assert self._beat is not None
        when, thread = self._beat
        line = f"{self._name} has stood still for {time.monotonic() - when:.0f} s, {_place(thread)}"
        _log.error("%s; all stacks:", line)
        with open(self._log, "a") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self._tell(f"{line}; its stacks are in {self._log}, and it starts again")
        time.sleep(2 * self._interval)  # the others that stand still with this one write down where, too
        os._exit(_EXIT_CODE)


def _cpu_seconds() -> float:
    """What the Python threads of this process have computed, without those of Ray and of libraries, which poll."""
    if not _CAN_SEE:
        return 0.0
    own = {thread.native_id for thread in threading.enumerate()}
    return float(sum(one.user_time + one.system_time for one in psutil.Process().threads() if one.id in own))


def _frames(thread: int) -> Iterator[FrameType]:
    """From the innermost to the outermost."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _in_storage(thread: int) -> bool:
    return any(Path(frame.f_code.co_filename).parts[-3:-1] == ("mlpt", "storage") for frame in _frames(thread))


def _place(thread: int) -> str:
    """Where a thread is: the innermost line of this package."""
    for frame in _frames(thread):
        path = Path(frame.f_code.co_filename)
        if "mlpt" in path.parts:
            return f"in {frame.f_code.co_name} ({path.name}:{frame.f_lineno})"
    return "outside of mlpt"


class Roll:
    """Who has been heard of, and when: kept by the hub, as those who are stopped cannot say so."""

    def __init__(self, limit: float | None):
        self._limit = limit
        self._last = time.monotonic()  # when anybody was heard of
        self._heard: dict[int, tuple[float, int, float]] = {}  # rank -> when, its process, when it last made progress
        self._ending: set[int] = set()  # processes of groups that start again, whose silence is nothing new

    def alive(self, rank: int, process: int, still: float) -> None:
        """`rank` is there, and has stood still for so many seconds. A new rank 0 begins a new group."""
        if rank == 0 and 0 in self._heard and self._heard[0][1] != process:
            self._heard = {}
        self._last = time.monotonic()
        self._heard[rank] = (self._last, process, self._last - still)

    def still(self) -> float:
        """Seconds for which every rank has stood still."""
        return time.monotonic() - max((progress for _, _, progress in self._heard.values()), default=0.0)

    def silence(self) -> float:
        """Seconds for which no rank at all was heard of."""
        return time.monotonic() - self._last

    def ends(self) -> None:
        """The group that is there starts again."""
        self._ending |= {process for _, process, _ in self._heard.values()}

    def missed(self) -> list[str]:
        """A line for each rank that has been silent for longer than the limit, once a group."""
        if self._limit is None:
            return []
        now = time.monotonic()
        late = {rank: one[1] for rank, one in self._heard.items() if now - one[0] > self._limit}
        new = {rank: process for rank, process in late.items() if process not in self._ending}
        if new:
            self.ends()
        return [
            f"rank {rank} (process {process}) has not been heard of for {self._limit:g} s; its group starts again"
            for rank, process in new.items()
        ]
