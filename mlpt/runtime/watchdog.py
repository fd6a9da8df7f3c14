"""Sees at once that Ray itself died, its raylet, an agent of that or its GCS, of which no Python code is told.

Ray would end this process on its own, after up to a minute and with pages of its log; here it is one line, and the
command that goes on.
"""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TextIO

import psutil
import ray

from mlpt.reporting.text import say_error
from mlpt.stopping import StopRequest

_KNOCK_EVERY_S = 2.0
_KNOCKS = 10  # in vain, one after another; Ray gives up after a minute
_ANSWER_S = 10.0
_SIGNAL_S = 2.0  # in which a busy machine lets this process hear of a signal that was sent to all at once


@contextlib.contextmanager
def watched(way_on: Callable[[], str], stop: StopRequest | None = None) -> Iterator[None]:
    """While the block runs, the end of the Ray that this process has joined ends it, with exit code 2.

    way_on  says what goes on with the work, for people.
    stop    knows whether a signal came, which some schedulers send to all processes at once; the exit code is its own
            then.
    """
    node = ray._private.worker._global_node
    processes = {"raylet": _raylet(node.raylet_socket_name), "GCS": _own_gcs(node)}
    known = {name: pid for name, pid in processes.items() if pid is not None} | _agents_of(processes["raylet"])
    with contextlib.ExitStack() as opened:
        if hasattr(os, "pidfd_open"):  # Linux
            opened.enter_context(watching(Ends(known, way_on, stop, _helpers_of(known.get("raylet")))))
        if "GCS" not in known:
            opened.enter_context(watching(Answers(node.gcs_address, way_on, stop)))
        yield


@contextlib.contextmanager
def watching(watcher: "Ends | Answers") -> Iterator[None]:
    thread = threading.Thread(target=watcher.run, name="ray-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watcher.stop()
        thread.join(timeout=10)


class Ends:
    """Waits for the end of one of the processes (pid by name), without asking again and again.

    helpers  processes that are to end with them, though they may have become nobody's children.
    """

    def __init__(
        self,
        processes: dict[str, int],
        way_on: Callable[[], str],
        stop: StopRequest | None = None,
        helpers: tuple[psutil.Process, ...] = (),
    ):
        self._names = {os.pidfd_open(pid): name for name, pid in processes.items()}
        self._way_on = way_on
        self._asked = stop
        self._helpers = helpers
        self._stopped, self._stop = os.pipe()

    def run(self) -> None:
        poll = select.poll()
        for descriptor in (*self._names, self._stopped):
            poll.register(descriptor, select.POLLIN)
        found = {descriptor for descriptor, _ in poll.poll()}
        if self._stopped not in found:
            _end(self._names[found.pop()], self._way_on, self._asked, self._helpers)
        for descriptor in (*self._names, self._stopped, self._stop):
            os.close(descriptor)

    def stop(self) -> None:
        os.write(self._stop, b".")


class Answers:
    """Knocks at the GCS of a cluster, which may be on another machine."""

    def __init__(self, address: str, way_on: Callable[[], str], stop: StopRequest | None = None):
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self._way_on = way_on
        self._asked = stop
        self._stop = threading.Event()

    def run(self) -> None:
        in_vain = 0
        while not self._stop.wait(_KNOCK_EVERY_S):
            try:
                socket.create_connection(self._place, timeout=_KNOCK_EVERY_S).close()
                in_vain = 0
            except OSError:
                in_vain += 1
            if in_vain == _KNOCKS and not self._stop.is_set():
                _end("GCS", self._way_on, self._asked)

    def stop(self) -> None:
        self._stop.set()


def _raylet(socket_name: str) -> int | None:
    """The raylet of this node, whoever started it."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and any(socket_name in word for word in process.info["cmdline"] or ()):
            return process.pid
    return None


def _agents_of(raylet: int | None) -> dict[str, int]:
    """Without any one of these a raylet ends itself, and has pages printed about that first."""
    with contextlib.suppress(psutil.Error):
        if raylet is not None:
            started = {one.name().removeprefix("ray::"): one.pid for one in psutil.Process(raylet).children()}
            return {name: pid for name, pid in started.items() if name.endswith("Agent")}
    return {}


def _helpers_of(raylet: int | None) -> tuple[psutil.Process, ...]:
    """What a raylet that this process has started runs beside the workers.

    These agents notice the death of their raylet, but then try for minutes to tell a GCS that has gone, too.
    """
    with contextlib.suppress(psutil.Error):
        for started in psutil.Process().children(recursive=True):
            if started.pid == raylet:
                return tuple(started.children())
    return ()


def _own_gcs(node: "ray._private.node.Node") -> int | None:
    """The GCS that this process has started."""
    started = node.all_processes.get("gcs_server")
    return started[0].process.pid if started else None


def _end(
    what: str, way_on: Callable[[], str], stop: StopRequest | None, helpers: tuple[psutil.Process, ...] = ()
) -> None:
    """End this process, and what is left of a Ray that it has started. Nothing of Ray can be used any more."""
    error = _silenced()  # Ray's own threads are about to print pages
    if error.isatty():
        error.write("\033[?25h\n")  # a live display has hidden the cursor
    why = f"Ray's {what} has died" if stop is None or not stop() else f"{stop.name} has ended Ray's {what}, too"
    say_error(f"{why}, and with it what ran on this Ray; go on by {_asked_for(way_on)}", error)
    error.flush()  # now: where an object of this process is lost, Ray ends the process within a second
    for process in (*psutil.Process().children(recursive=True), *helpers):
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + (0 if stop is None else _SIGNAL_S)
    while stop is not None and not stop() and time.monotonic() < deadline:
        time.sleep(0.02)
    os._exit(2 if stop is None or not stop() else 128 + stop.number)


def _asked_for(way_on: Callable[[], str]) -> str:
    """The answer, if it comes in time: it may have to look at a store that cannot be reached any more."""
    answers: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=lambda: answers.put(way_on()), daemon=True).start()
    try:
        return answers.get(timeout=_ANSWER_S)
    except Empty:
        return "the same command"


def _silenced() -> TextIO:
    """What standard error was, for this caller alone: from now on whatever else is printed goes nowhere."""
    error = os.fdopen(os.dup(2), "w", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    return error
