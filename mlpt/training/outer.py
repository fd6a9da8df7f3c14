"""The loop's side of meta-learning: launch an update at step t, adopt its answer at exactly step t + lag on every rank.

Lag, not luck: rank 0 waits if the answer is late and shares its value, so a run doesn't depend on the learner's speed.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mlpt.meta.learner import MetaLearner
from mlpt.meta.policy import Answer, Evidence, Policy, Snapshot
from mlpt.meta.snapshot import take_snapshot
from mlpt.training.group import Group
from mlpt.training.meter import Seen, add_up, from_json, to_json


class PolicySource(Protocol):
    """Whoever computes policies: a learner in this process, or an actor elsewhere. Used on rank 0 only."""

    def start(self, state: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> None:
        """Put the learner into the state of a checkpoint; None: into its first state."""

    def launch(self, policy: Policy, snapshot: Snapshot, evidence: Evidence) -> None:
        """Begin one update. The snapshot's buffers may be overwritten once this returns."""

    def collect(self) -> Answer:
        """Wait for the update under way, and return its answer."""


class LocalSource:
    """The in-process twin of the actor: the update runs when it is launched, which a debugger can follow.

    threads  that torch computes with during an update, as the actor does: sums depend on their number.
    """

    def __init__(self, learner: MetaLearner, threads: int):
        self._learner = learner
        self._threads = threads
        self._first_state = learner.state()
        self._answer: Answer | None = None

    def start(self, state: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> None:
        if state is None:
            state, tensors = self._first_state
        self._learner.load_state(state, tensors)

    def launch(self, policy: Policy, snapshot: Snapshot, evidence: Evidence) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            self._answer = self._learner.update(policy, snapshot, evidence)
        finally:
            torch.set_num_threads(threads)

    def collect(self) -> Answer:
        if self._answer is None:
            raise RuntimeError("collect() without launch()")
        answer, self._answer = self._answer, None
        return answer


class Outer:
    """The policy in force, the update under way, and the evidence gathered since the last one."""

    def __init__(
        self,
        policy: Policy,
        source: PolicySource | None,
        group: Group,
        interval: int,
        lag: int,
        moments: bool,
        learns: bool,
    ):
        self.policy = policy
        self.group = group
        self.interval = interval
        self.lag = lag
        self.learns = learns
        self.stall_seconds = 0.0  # waiting for answers
        self.launch_seconds = 0.0  # taking and sending snapshots
        self.learner_seconds = 0.0  # the learner's own work, beside training where it runs elsewhere
        self._source = source
        self._moments = moments
        self._snapshot: Snapshot | None = None  # reused buffers
        self._adopt_at: int | None = None
        self._settled: Answer | None = None  # an answer fetched before its time, for a checkpoint
        self._seen: dict[str, Seen] = {}
        self._expected: dict[str, float] = {}
        self._learner_state: Mapping[str, Any] | None = None
        self._learner_tensors: Mapping[str, Tensor] = {}

    def start(self) -> None:
        """Put the learner into this object's state (fresh or loaded): after the settled update if there is one."""
        if self.learns and self._source is not None:
            if self._settled is not None:
                self._source.start(self._settled.state, self._settled.tensors)
            else:
                self._source.start(self._learner_state, self._learner_tensors)

    def draw(self) -> Mapping[str, float]:
        """The mixture for the coming step, counted in the next update's evidence as the one that was in force."""
        for name, probability in self.policy.mixture.items():
            self._expected[name] = self._expected.get(name, 0.0) + probability
        return self.policy.mixture

    def observe(self, seen: Mapping[str, Seen]) -> None:
        """Add what all ranks saw in a step to the next update's evidence."""
        add_up(self._seen, seen)

    def seconds(self) -> dict[str, float]:
        """What meta-learning took in the whole run: training that stood still, snapshots, the learner's own work."""
        return {"stall": self.stall_seconds, "launch": self.launch_seconds, "learner": self.learner_seconds}

    def launch_due(self, step: int) -> bool:
        return self.learns and step % self.interval == 0

    def launch(
        self,
        step: int,
        model: torch.nn.Module,
        optimizer: torch.optim.AdamW,
        rate: float,
        altered: Sequence[str] = (),
    ) -> None:
        """Send the snapshot of `step` to the learner and begin to count the lag.

        altered  names of the frozen parameters that step hooks may change.
        """
        begun = time.perf_counter()
        if self._source is not None:
            self._snapshot = take_snapshot(model, optimizer, step, rate, self._moments, self._snapshot, altered)
            draws = {name: seen.steps for name, seen in self._seen.items()}
            losses = {name: seen.mean for name, seen in self._seen.items() if seen.mean is not None}
            self._source.launch(self.policy, self._snapshot, Evidence(draws, losses, dict(self._expected)))
        self._seen, self._expected = {}, {}
        self._adopt_at = step + self.lag
        self.launch_seconds += time.perf_counter() - begun

    def adopt_if_due(self, step: int, model: torch.nn.Module) -> Answer | None:
        """At the step of adoption, make the answer's policy the one in force, on every rank; None at other steps.

        The answer's state is meaningful on rank 0 only.
        """
        if self._adopt_at != step:
            return None
        self.settle()
        answer = self._settled
        self._adopt_at, self._settled = None, None
        shared = self.group.share(None if answer is None else (answer.policy.to_json(), dict(answer.report)))
        self._apply_masks(None if answer is None else answer.policy.masks, model)
        self.policy = Policy.from_json(shared[0])
        if answer is not None:
            self._learner_state, self._learner_tensors = answer.state, answer.tensors
        self.learner_seconds += float(shared[1].get("seconds", 0.0))
        return Answer(self.policy, self._learner_state or {}, shared[1])

    def settle(self) -> None:
        """Wait for the update under way and keep its answer until its step comes (rank 0)."""
        if self._source is not None and self._adopt_at is not None and self._settled is None:
            begun = time.perf_counter()
            self._settled = self._source.collect()
            self.stall_seconds += time.perf_counter() - begun

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint holds (rank 0). Call `settle` before, so that nothing is under way."""
        state: dict[str, Any] = {
            "policy": self.policy.to_json(),
            "seen": to_json(self._seen),
            "expected": self._expected,
            "learner": self._learner_state,
            "seconds": self.seconds(),
        }
        tensors = {f"learner.{name}": tensor for name, tensor in self._learner_tensors.items()}
        if self._settled is not None:
            answer = self._settled
            state["pending"] = {
                "adopt_at": self._adopt_at,
                "policy": answer.policy.to_json(),
                "learner": answer.state,
                "report": answer.report,
            }
            tensors |= {f"pending.learner.{name}": tensor for name, tensor in answer.tensors.items()}
            tensors |= {f"pending.masks.{name}": tensor for name, tensor in (answer.policy.masks or {}).items()}
        return state, tensors

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, on every rank; call `start` after it."""
        self.policy = Policy.from_json(state["policy"])
        self._seen, self._expected = from_json(state["seen"]), dict(state["expected"])
        self._learner_state = state["learner"]
        self._learner_tensors = _under(tensors, "learner.")
        spent = state["seconds"]
        self.stall_seconds, self.launch_seconds = spent["stall"], spent["launch"]
        self.learner_seconds = spent["learner"]
        pending = state.get("pending")
        if pending is not None:
            policy = Policy.from_json(pending["policy"], _under(tensors, "pending.masks.") or None)
            self._adopt_at = pending["adopt_at"]
            learner_tensors = _under(tensors, "pending.learner.")
            if self._source is not None:
                self._settled = Answer(policy, pending["learner"], pending["report"], learner_tensors)

    def _apply_masks(self, masks: Mapping[str, Tensor] | None, model: torch.nn.Module) -> None:
        """Copy rank 0's mask scores into the model of every rank. They live there from now on, not in the policy."""
        names = self.group.share(None if masks is None else list(masks)) if self.group.world > 1 else list(masks or {})
        for name in names or []:
            scores = model.get_parameter(name).data
            if masks is not None:
                scores.copy_(masks[name])
            if self.group.world > 1:
                torch.distributed.broadcast(scores, src=0)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
