"""The Ray actor that hosts the meta-learner, and the client with which rank 0 reaches it.

The actor is a thin shell. Its state travels with every answer and lives in the training checkpoint, so an actor that
dies is given the state back and its update again: nothing is lost, nothing is done twice.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError, RayTaskError

from mlpt.config import RunConfig, RuntimeConfig
from mlpt.errors import UserError
from mlpt.logs import log_to_file
from mlpt.meta.learner import MetaLearner
from mlpt.meta.policy import Answer, Evidence, Policy
from mlpt.meta.snapshot import Snapshot
from mlpt.run.build import build_learner, open_sources, threads_of
from mlpt.runtime.hangs import Watch
from mlpt.runtime.replicas import MOST_DEATHS, ReplicaLost, Replicas, gather
from mlpt.storage.mirror import Remote, fetch_log, send_log, working_folder
from mlpt.storage.state import Flat, State
from mlpt.training.group import default_device
from mlpt.training.outer import newer, policy_of, policy_state

_UPDATE_TIMEOUT_S = 3600.0  # an update that takes longer hangs
START_TIMEOUT_S = 900.0  # an autoscaling cluster may have to add a node for the actor
_LOG_TIMEOUT_S = 30.0
BUILD_S = 60.0  # doubled each time; where nothing has to be waited for but its imports and its model
_PULSE_S = 5.0
_RETRY_S = 0.25
_log = logging.getLogger(__name__)


class MetaLearnerActor:
    """One process that holds a `MetaLearner`; everything it knows it can be told again.

    An idle one, or one that Ray restarted, has built its learner once and dropped it: the seconds of imports that this
    takes are over when `start` builds it again.
    """

    def __init__(
        self,
        config: dict[str, Any],
        blocks: str,
        run_dir: str,
        remote: Remote | None,
        idle: bool = False,
        replica: int = 0,
    ):
        self._remote = remote
        name = f"meta_learner_{replica}.log" if replica else "meta_learner.log"
        self._log = working_folder(run_dir, remote) / "logs" / name
        fetch_log(remote, self._log)
        log_to_file(self._log)
        self._config = RunConfig.model_validate(config)
        self._blocks = blocks
        torch.set_num_threads(threads_of(self._config.runtime.meta_cpus))
        self._watch = Watch(
            self._config.runtime.hang_timeout, f"the meta-learner (process {os.getpid()})", self._log
        ).__enter__()
        if idle or ray.get_runtime_context().was_current_actor_reconstructed:
            self._build()
        else:
            _ = self._learner

    @cached_property
    def _learner(self) -> MetaLearner:
        learner = self._build()
        self._first_state = learner.state()
        rules = {part: rule.rule for part, rule in self._config.meta.rules.items()}
        _log.info("meta-learner ready: rules %s, process %d", rules, os.getpid())
        return learner

    def _build(self) -> MetaLearner:
        device = default_device() if self._config.runtime.meta_gpus else torch.device("cpu")
        return build_learner(self._config, open_sources(self._config, self._blocks), device)

    def start(self, policy: "Parcel", state: "Parcel | None") -> None:
        """Put the learner into `state` with that policy; None: into its first state."""
        learner = self._learner
        learner.start(policy_of(policy.unpack()), self._first_state if state is None else state.unpack())

    def update(self, snapshot: Snapshot, evidence: Evidence, others: Sequence[Any] = ()) -> "Parcel":
        """One update of the learner: a packed answer. others: references to what the other replicas find."""
        with self._watch.at_work():
            found = (lambda: gather(others, self._watch.beat)) if others else None
            answer = self._learner.update(snapshot, evidence, found)
        _log.info("step %d: policy %d, %s", snapshot.step, answer.version, dict(answer.report))
        return Parcel.pack(_state_of(answer))

    def found(self, snapshot: Snapshot, policy: "Parcel", state: "Parcel | None", replica: int) -> "Parcel":
        """What this one, as a replica, finds for an update that goes on from that policy and state."""
        with self._watch.at_work():
            self.start(policy, state)
            return Parcel.pack(self._learner.found(snapshot, replica))

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> bool:
        """Whether an update is under way; answered meanwhile."""
        return self._watch.working

    def send_log(self) -> None:
        """Copy the log to the run's URI, if it has one."""
        send_log(self._remote, self._log)


@dataclass(frozen=True)
class Parcel:
    """A state as it travels: its values, and its tensors in one flat buffer."""

    values: Mapping[str, Any]
    flat: Flat

    @classmethod
    def pack(cls, state: State) -> "Parcel":
        """A copy of `state`."""
        return cls(state.values, Flat.pack(state.tensors))

    def unpack(self) -> State:
        """The state; its tensors are copies, which may be written to."""
        return State(self.values, {name: one.clone() for name, one in self.flat.unpack().items()})


def _state_of(answer: Answer) -> State:
    parts = policy_state(Policy(answer.version, answer.parts))
    joined = State.join({"parts": parts, "state": answer.state})
    return State({**joined.values, "report": dict(answer.report)}, joined.tensors)


def _answer_of(state: State) -> Answer:
    policy = policy_of(state.part("parts"))
    return Answer(policy.version, policy.parts, state.part("state"), state.values["report"])


def create_actor(
    config: RunConfig, blocks: str, run_dir: Path, remote: Remote | None, spare: bool = False, replica: int = 0
) -> Any:
    """The actor, owned by the calling process, with resources of its own; a `spare` has none, and waits.

    It restarts after death, but no call is repeated by Ray: the client repeats it with the right state. Replicas after
    the first have no state, and Ray repeats their calls.
    """
    runtime: RuntimeConfig = config.runtime
    threads = str(threads_of(runtime.meta_cpus))
    options: dict[str, Any] = {
        "num_cpus": 0 if spare else runtime.meta_cpus,
        "num_gpus": runtime.meta_gpus,
        "resources": runtime.meta_resources or None,
        "max_restarts": -1,  # for ever; `ActorSource` counts the deaths
        "max_task_retries": MOST_DEATHS if replica else 0,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
    }
    actor_class = ray.remote(concurrency_groups={"pulse": 1})(MetaLearnerActor).options(**options)
    return actor_class.remote(config.model_dump(), blocks, str(run_dir), remote, spare, replica)


def may_have_spare(config: RunConfig) -> bool:
    """A spare must be able to wait beside the actor, which it could not where the actor holds a GPU or a place."""
    runtime = config.runtime
    return runtime.meta_spare and not runtime.meta_gpus and not runtime.meta_resources


def end_actor(actor: Any, remote: Remote | None) -> None:
    """Kill the actor; its log goes up first where the run is `remote`."""
    if remote is not None:
        with contextlib.suppress(RayError):  # it may be dead already
            ray.get(actor.send_log.remote(), timeout=_LOG_TIMEOUT_S)
    ray.kill(actor)


class ActorSource:
    """Rank 0's way to the actor (a `PolicySource`). A death of the actor costs time, never an update.

    A thread follows each update: a death is seen at once, not when the answer is due, and by then it may be mended.

    hang_timeout   seconds without a sign of life after which the actor's process is ended; null: never.
    build_timeout  seconds in which an actor is ready, or another one is made; doubled each time.
    create        makes another actor for one that is dead for good: somebody killed it through Ray.
    create_spare  makes one that waits, with its imports done, to take the place of one that dies: the dead one, once
                  Ray has restarted it, is then the spare. None: the restart itself is waited for.
    replicas      those among which a look-ahead is shared out, besides the actor itself.
    """

    def __init__(
        self,
        actor: Any,
        create: Callable[[], Any],
        create_spare: Callable[[], Any] | None = None,
        hang_timeout: float | None = None,
        build_timeout: float = START_TIMEOUT_S,
        replicas: Replicas | None = None,
    ):
        self._replicas = replicas
        self._hang_timeout = hang_timeout
        self._patience = build_timeout
        self._actor = actor
        self._create = create
        self._create_spare = create_spare
        self._spare: Any = None
        self._deaths = 0
        self._policy = Policy(0)
        self._state: State | None = None
        self._launched: tuple[Any, Evidence, list[Any]] | None = None  # snapshot, evidence, what replicas will find
        self._future: Any = None
        self._outcome: SimpleQueue[Answer | Exception | None] = SimpleQueue()
        self.waiting: Callable[[], None] = lambda: None  # called every few seconds by whoever waits for the actor

    def start(self, policy: Policy, state: State | None) -> None:
        """Push the state of a checkpoint: an actor that outlived a crash of the workers is ahead of it."""
        self._policy, self._state = policy, state
        self._begin(self._push)
        self._wait()

    def launch(self, snapshot: Snapshot, evidence: Evidence) -> None:
        """Put the snapshot's flat buffers into the object store and begin the update."""
        self._send(ray.put(snapshot), evidence)
        if self._spare is None and self._create_spare is not None:
            self._spare = self._create_spare()  # now, so that it does not compete with the start of the run
        self._begin(self._answer)

    def collect(self) -> Answer:
        """Wait for the answer. Raises `UserError` when the learner fails or its actor keeps dying."""
        answer = self._wait()
        assert answer is not None
        self._policy, self._state = self._policy.after(answer), newer(self._state, answer.state)
        self._launched, self._future, self._deaths = None, None, 0
        return answer

    def _send(self, snapshot: Any, evidence: Evidence) -> None:
        others = [] if self._replicas is None else self._replicas.ask(snapshot, *self._packed())
        self._launched = (snapshot, evidence, others)
        self._future = self._actor.update.remote(*self._launched)

    def _packed(self) -> tuple[Any, Any]:
        """References to the newest policy and its state."""
        policy = ray.put(Parcel.pack(policy_state(self._policy)))
        return policy, None if self._state is None else ray.put(Parcel.pack(self._state))

    def _begin(self, work: Callable[[], Answer | None]) -> None:
        def follow() -> None:
            try:
                self._outcome.put(work())
            except Exception as error:  # raised where the run can end
                self._outcome.put(error)

        # A daemon: the end of a run that fails does not wait for it.
        threading.Thread(target=follow, name="meta-learner", daemon=True).start()

    def _wait(self) -> Answer | None:
        """The outcome of what has begun. It does come: each of its own waits has an end."""
        while True:
            try:
                outcome = self._outcome.get(timeout=_PULSE_S)
            except Empty:
                self.waiting()
                continue
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    def _answer(self) -> Answer:
        while True:
            try:
                self._wait_for_life()
                answer = _answer_of(ray.get(self._future, timeout=_UPDATE_TIMEOUT_S).unpack())
            except RayTaskError as error:
                if isinstance(error.cause, ReplicaLost) and self._replicas is not None and self._launched is not None:
                    self._count(error)
                    self._replicas.renew()
                    self._send(*self._launched[:2])
                    continue
                raise UserError(
                    f"the meta-learner failed: {_cause(error)}; its log is logs/meta_learner.log"
                ) from error
            except (RayActorError, GetTimeoutError) as error:
                self._again(error)
            else:
                return answer

    def _wait_for_life(self) -> None:
        """Return when the update under way has ended.

        An actor that does not answer, as one that is stopped, or that has not begun the update, is ended, and with it
        its update; one that updates watches itself.
        """
        if self._hang_timeout is None:
            return
        updated = time.monotonic()  # when it was last seen to
        while not ray.wait([self._future], timeout=_PULSE_S)[0]:
            if self._replicas is not None:
                self._replicas.look()
            pulse = self._actor.pulse.remote()
            answered, _ = ray.wait([pulse], timeout=self._hang_timeout)
            if answered and ray.get(pulse):
                updated = time.monotonic()
            if time.monotonic() - updated < self._hang_timeout or ray.wait([self._future], timeout=0)[0]:
                continue
            _log.warning("the meta-learner has not answered for %g s: its process is ended", self._hang_timeout)
            ray.kill(self._actor, no_restart=False)
            ray.wait([self._future], timeout=self._hang_timeout)
            updated = time.monotonic()

    def _again(self, error: Exception) -> None:
        """Give the spare, or the restarted actor, the state and the update that was lost."""
        _log.warning("the meta-learner died (%s); it gets its state and its update again", type(error).__name__)
        self._count(error)
        if self._spare is not None:
            self._actor, self._spare = self._spare, self._actor
        self._push()
        assert self._launched is not None
        self._future = self._actor.update.remote(*self._launched)

    def _count(self, error: Exception) -> None:
        self._deaths += 1
        if self._deaths > MOST_DEATHS:  # without an answer in between
            raise UserError(
                f"the meta-learner's actor keeps dying ({_cause(error)}); look into logs/meta_learner.log and resume"
            ) from error

    def _push(self) -> None:
        """Hand over the state, as soon as there is an actor to take it."""
        policy, state = self._packed()
        deadline = time.monotonic() + self._patience
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                ray.get(self._actor.start.remote(policy, state), timeout=left)
                return
            except RayTaskError as error:
                raise UserError(f"the meta-learner cannot start: {_cause(error)}") from error
            except (RayActorError, GetTimeoutError) as error:
                if isinstance(error, ActorDiedError) or time.monotonic() > deadline:
                    self._replace(error)
                    deadline = time.monotonic() + self._patience
                time.sleep(_RETRY_S)  # it is restarting

    def _replace(self, error: Exception) -> None:
        """Make another actor for one that is dead for good, or that is not ready in time."""
        self._count(error)
        if not isinstance(error, ActorDiedError):
            _log.warning("the meta-learner was not ready in %g s: another one is made", self._patience)
            self._patience *= 2
            ray.kill(self._actor)
        # Like a spare, if there is one: the other of the two may hold the place that this one had.
        self._actor = (self._create_spare or self._create)()


def _cause(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return lines[-1] if lines else type(cause).__name__
