"""Between rank 0 and the driver: a mailbox that outlives both the ranks and a busy driver, and who reads it."""

import threading
from typing import Any, Protocol

import ray

from mlpt.logs import Event
from mlpt.runtime.hangs import Roll

_TIMEOUT_S = 30.0
_ANSWER_S = 60
_RESTART_S = 2.0  # between two looks at a hub that starts again
_LAST_ANSWER_S = 15  # when nothing but the last events is waited for


class Hub:
    """A mailbox between rank 0 and the driver: events in order, the error that ended the run, a wish to stop it."""

    def __init__(self, hang_timeout: float | None = None) -> None:
        self._roll = Roll(hang_timeout)
        self._events: list[Event] = []
        self._error: str | None = None
        self._trains = False
        self._stopping = False

    def push(self, event: Event) -> None:
        self._trains = True
        self._events.append(event)

    def drain(self) -> list[Event]:
        self._warn(*self._roll.missed())
        events, self._events = self._events, []
        return events

    def alive(self, rank: int, process: int, still: float) -> None:
        """Told by each rank: it is there, and has stood still for so many seconds."""
        self._roll.alive(rank, process, still)

    def ending(self, text: str) -> None:
        """Told by a rank that stands still, and ends its group with these words."""
        self._warn(*self._roll.missed(), text)
        self._roll.ends()

    def still(self) -> float:
        """Seconds for which every rank has stood still."""
        return self._roll.still()

    def silence(self) -> float:
        """Seconds for which no rank was heard of."""
        return self._roll.silence()

    def _warn(self, *texts: str) -> None:
        self._events += [{"event": "warning", "text": text} for text in texts]

    def fail(self, error: str) -> None:
        self._error = self._error or error

    def error(self) -> str | None:
        return self._error

    def stop(self) -> bool:
        """Ask the run to stop; False if there is no worker yet that could hear it."""
        self._stopping = True
        return self._trains

    def stopping(self) -> bool:
        """Asked by a worker: whether the run shall stop."""
        self._trains = True
        return self._stopping


def asked(answer: Any, or_else: Any) -> Any:
    """What the hub answers; `or_else` where it hangs or has died, which shall not be what a run waits for."""
    try:
        return ray.get(answer, timeout=_TIMEOUT_S)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
        return or_else


class Hearer(Protocol):
    """Who is told of events."""

    def handle(self, event: Event) -> None: ...

    def say(self, text: str) -> None: ...


class Relay:
    """A driver thread that shows the hub's events while the workers train, and knows whether any is heard of."""

    def __init__(self, hub: Any, display: Hearer):
        self.silence = 0.0  # seconds for which no worker was heard of, as far as the hub answers
        self._hub, self._display = hub, display
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> "Relay":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        answered = stopping = away = False
        events = None
        while True:
            try:
                events = events or self._hub.drain.remote()  # asked once: what is answered late is not lost
                for event in self._answer(events):
                    self._display.handle(event)
                events = None
                self.silence = self._answer(self._hub.silence.remote())
                answered, away = True, False
            except TimeoutError:
                if self._stop.is_set():
                    return
                if answered:  # else it still starts, on a busy machine
                    self._display.say(f"the hub has not answered for {_ANSWER_S} s; training goes on, unseen")
                self.silence = 0.0
                continue
            except ray.exceptions.ActorUnavailableError:
                if not away:
                    self._display.say("the hub has died and is started again; training goes on, unseen for a moment")
                events, away = None, True
                if self._stop.wait(_RESTART_S):
                    return
                continue
            except ray.exceptions.RayError:
                return  # Ray is going away; `fit` says why
            if stopping:
                return
            stopping = self._stop.wait(0.3)

    def _answer(self, asked: Any) -> Any:
        """What the hub answers; raises `TimeoutError` where it hangs, sooner if the run has ended."""
        waited = 0
        while not ray.wait([asked], timeout=1.0)[0]:
            waited += 1
            if waited >= (_LAST_ANSWER_S if self._stop.is_set() else _ANSWER_S):
                raise TimeoutError
        return ray.get(asked)
