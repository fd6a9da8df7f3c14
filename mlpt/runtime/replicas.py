"""The other replicas of the meta-learner: actors that find gradients on their rows, and know nothing between updates.

Rank 0 asks them, with the snapshot, the policy and the state of the update before; the one learner whose state
advances is told where their answers will be, and waits for them in their order. One that dies is restarted by Ray,
which repeats what it was asked: the answer is a function of the question.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError

from mlpt.storage.state import State

_BEAT_S = 5.0
MOST_DEATHS = 10  # of a replica in one update; more are no accident
_log = logging.getLogger(__name__)


class ReplicaLost(Exception):  # noqa: N818 (it says what happened; the update is asked for again)
    """A replica is dead for good."""


def gather(answers: Sequence[Any], beat: Callable[[], None]) -> list[State]:
    """What the replicas found, in their order, in the learner's own process; `beat` is called while it waits.

    Raises `ReplicaLost`, and whatever a replica raised.
    """
    waiting = list(answers)
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_BEAT_S)
        beat()
    try:
        return [parcel.unpack() for parcel in ray.get(list(answers))]
    except RayTaskError as error:
        raise getattr(error, "cause", None) or error from error
    except RayActorError as error:
        raise ReplicaLost(str(error)) from error


class Replicas:
    """Rank 0's way to the replicas after the first.

    create    makes the replica of a number, for one that is dead for good.
    patience  seconds without an answer to a question as small as `pulse` after which a replica is ended, and restarts;
              None: never.
    """

    def __init__(self, actors: Mapping[int, Any], create: Callable[[int], Any], patience: float | None):
        self._actors = dict(actors)
        self._create = create
        self._patience = patience
        self._pulses: dict[int, tuple[Any, float]] = {}

    def ask(self, snapshot: Any, policy: Any, state: Any) -> list[Any]:
        """Begin what each of them does for an update; references to what they will find, in their order."""
        return [self._actors[number].found.remote(snapshot, policy, state, number) for number in sorted(self._actors)]

    def renew(self) -> None:
        """Make another one for each that is dead for good."""
        for number, actor in self._actors.items():
            try:
                ray.get(actor.pulse.remote(), timeout=self._patience)
            except ActorDiedError:
                _log.warning("replica %d of the meta-learner is dead: another one is made", number)
                self._actors[number] = self._create(number)
            except (RayActorError, GetTimeoutError):
                continue  # it is restarting

    def look(self) -> None:
        """End those that have not answered for too long, as one that is stopped; called every few seconds."""
        if self._patience is None:
            return
        for number, actor in self._actors.items():
            asked, since = self._pulses.setdefault(number, (actor.pulse.remote(), time.monotonic()))
            late = time.monotonic() - since > self._patience
            if late and not ray.wait([asked], timeout=0)[0]:
                _log.warning("replica %d has not answered for %g s: its process is ended", number, self._patience)
                ray.kill(actor, no_restart=False)
            if late or ray.wait([asked], timeout=0)[0]:
                del self._pulses[number]
