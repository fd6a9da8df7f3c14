"""The loop's side of meta-learning: launch an update at step t, adopt its answer at exactly step t + lag on every rank.

Lag, not luck: rank 0 waits if the answer is late and broadcasts its value, so a run doesn't depend on the learner's
speed.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mlpt.meta.learner import MetaConfig, MetaLearner, first_policy
from mlpt.meta.policy import MIXTURE, Answer, Evidence, Part, Planned, Policy
from mlpt.meta.rules import make_rules
from mlpt.meta.snapshot import Snapshot, take_snapshot
from mlpt.models.sharded import is_sharded
from mlpt.storage.state import State
from mlpt.training.draw import sampled
from mlpt.training.group import Group
from mlpt.training.made import GradientRecorder
from mlpt.training.meter import Seen, add_up, from_json, to_json


class PolicySource(Protocol):
    """Whoever computes policies: a learner in this process, or an actor elsewhere. Used on rank 0 only."""

    def start(self, policy: Policy, state: State | None) -> None:
        """Put the learner into the state of a checkpoint, with the newest policy then; None: into its first state."""

    def launch(self, snapshot: Snapshot, evidence: Evidence) -> None:
        """Begin one update. The snapshot's buffers may be overwritten once this returns."""

    def collect(self) -> Answer:
        """Wait for the update under way, and return its answer."""


class Plans(Protocol):
    """What is known of the steps to come (`mlpt.training.arm_rows.ArmRows` is the real one)."""

    def exhausted(self) -> Collection[str]:
        """Arms that may not be drawn any more."""

    def coming(self, step: int, mixture: Mapping[str, float]) -> Sequence[Planned]:
        """The micro-batches of the step to come."""

    def rows(self, step: int, first: int, end: int, mixture: Mapping[str, float]) -> Mapping[str, NDArray[np.int64]]:
        """The rows of the steps from `first` to before `end`, by source."""


class LocalSource:
    """The in-process twin of the actor: the update runs when it is launched, which a debugger can follow.

    threads  that torch computes with during an update, as the actor does: sums depend on their number.
    """

    def __init__(self, learner: MetaLearner, threads: int):
        self._learner = learner
        self._threads = threads
        self._first_state = learner.state()
        self._answer: Answer | None = None

    def start(self, policy: Policy, state: State | None) -> None:
        self._learner.start(policy, self._first_state if state is None else state)

    def launch(self, snapshot: Snapshot, evidence: Evidence) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            self._answer = self._learner.update(snapshot, evidence)
        finally:
            torch.set_num_threads(threads)

    def collect(self) -> Answer:
        if self._answer is None:
            raise RuntimeError("collect() without launch()")
        answer, self._answer = self._answer, None
        return answer


class Outer:
    """The policy in force, the update under way, and the evidence gathered since the last one.

    source    computes policies, on rank 0; None on the other ranks, and where nothing is learned.
    sampling  probabilities by which arms are drawn; None: by the mixture.
    """

    def __init__(
        self,
        config: MetaConfig,
        trained: list[str],
        source: PolicySource | None,
        group: Group,
        sampling: Mapping[str, float] | None = None,
    ):
        self.config, self.group = config, group
        self.rules = make_rules(config.rules, trained)
        self.learns = any(rule.learns for rule in self.rules.values())
        self.policy = first_policy(self.rules)
        self.stall_seconds = 0.0  # waiting for answers
        self.launch_seconds = 0.0  # taking and sending snapshots
        self.learner_seconds = 0.0  # the learner's own work, beside training where it runs elsewhere
        interval = config.interval if config.keeps_gradients else None
        self.made = GradientRecorder(interval, group, config.lookahead.averaged_steps)
        self._source, self._sampling = source, sampling
        self._moments = any(rule.needs_moments for rule in self.rules.values())
        self._snapshot: Snapshot | None = None  # reused buffers
        self._adopt_at: int | None = None
        self._settled: Answer | None = None  # an answer fetched before its time, for a checkpoint
        self._seen: dict[str, Seen] = {}
        self._expected: dict[str, float] = {}
        self._learner_state: State | None = None  # after the newest answer that was adopted

    def start(self, model: torch.nn.Module) -> None:
        """Put model and learner into this object's state, fresh or loaded."""
        self._apply(self.policy.parts, model)
        if self.learns and self._source is not None:
            newest, state = self.policy, self._learner_state
            if self._settled is not None:
                newest, state = newest.after(self._settled), newer(state, self._settled.state)
            self._source.start(newest, state)

    def draw(self, exhausted: Collection[str] = ()) -> Mapping[str, float]:
        """The mixture of the coming step; what it is drawn by counts in the next update's evidence."""
        mixture = self.mixture(exhausted)
        for name, probability in sampled(mixture, self._sampling).items():
            self._expected[name] = self._expected.get(name, 0.0) + probability
        return mixture

    def mixture(self, exhausted: Collection[str] = ()) -> Mapping[str, float]:
        """The mixture in force.

        exhausted  arms that may not be drawn any more; the others keep their proportions.
        """
        mixture = self.policy.values(MIXTURE)
        if exhausted:
            mixture = {name: 0.0 if name in exhausted else share for name, share in mixture.items()}
            total = math.fsum(mixture.values())
            left = len(mixture) - len(exhausted)
            mixture = {
                name: share / total if total else float(name not in exhausted) / left for name, share in mixture.items()
            }
        return mixture

    def observe(self, seen: Mapping[str, Seen]) -> None:
        """Add what all ranks saw in a step to the next update's evidence."""
        add_up(self._seen, seen)

    def seconds(self) -> dict[str, float]:
        """What meta-learning took in the whole run: training that stood still, snapshots, the learner's own work."""
        return {"stall": self.stall_seconds, "launch": self.launch_seconds, "learner": self.learner_seconds}

    def stays(self, step: int) -> bool:
        """Whether the policy in force now will be that of `step`, the next one, and no update begins before it."""
        return self._adopt_at != step and not self.launch_due(step)

    def launch_due(self, step: int) -> bool:
        return self.learns and step % self.config.interval == 0

    def launch(
        self,
        step: int,
        model: torch.nn.Module,
        optimizer: torch.optim.AdamW,
        rate: float,
        altered: Sequence[str] = (),
        plans: Plans | None = None,
    ) -> None:
        """Send the snapshot of `step` to the learner and begin to count the lag.

        altered  names of the frozen parameters that step hooks may change.
        plans    asked for what rules need to know of the steps to come.
        """
        begun = time.perf_counter()
        if self._source is not None or is_sharded(model):
            made = self.made.kept
            self._snapshot = take_snapshot(model, optimizer, step, rate, self._moments, self._snapshot, altered, made)
        if self._source is not None and self._snapshot is not None:
            draws = {name: seen.steps for name, seen in self._seen.items()}
            losses = {name: seen.mean for name, seen in self._seen.items() if seen.mean is not None}
            evidence = Evidence(draws, losses, dict(self._expected), *self._coming(step, plans))
            self._source.launch(self._snapshot, evidence)
        self._seen, self._expected, self.made.kept = {}, {}, None
        self._adopt_at = step + self.config.lag
        self.launch_seconds += time.perf_counter() - begun

    def _coming(self, step: int, plans: Plans | None) -> tuple[Sequence[Planned], Mapping[str, NDArray[np.int64]]]:
        """`coming` and `rows` of the evidence: empty where no rule needs them."""
        rules = self.rules.values()
        if plans is None or not any(rule.needs_coming or rule.needs_rows for rule in rules):
            return (), {}
        mixture = self.mixture(plans.exhausted())
        adopted = step + self.config.lag
        return (
            plans.coming(step, mixture) if any(rule.needs_coming for rule in rules) else (),
            plans.rows(step, adopted, adopted + self.config.interval, mixture)
            if any(rule.needs_rows for rule in rules)
            else {},
        )

    def adopt_if_due(self, step: int, model: torch.nn.Module) -> Mapping[str, Any] | None:
        """At the step of adoption, make the answer's policy the one in force, on every rank, and return its report."""
        if self._adopt_at != step:
            return None
        self.settle()
        answer, self._adopt_at, self._settled = self._settled, None, None
        changed, report = self._broadcast(answer)
        self.policy = self.policy.after(changed)
        self._apply(changed.parts, model)
        if answer is not None:
            self._learner_state = newer(self._learner_state, answer.state)
        self.learner_seconds += float(report.get("seconds", 0.0))
        return report

    def settle(self) -> None:
        """Wait for the update under way and keep its answer until its step comes (rank 0)."""
        if self._source is not None and self._adopt_at is not None and self._settled is None:
            begun = time.perf_counter()
            self._settled = self._source.collect()
            self.stall_seconds += time.perf_counter() - begun

    def state(self) -> State:
        """What a checkpoint holds (rank 0). Call `settle` before, so that nothing is under way."""
        kept = {
            "policy": policy_state(self.policy),
            "learner": self._learner_state or State(),
            "made": self.made.state(),
        }
        values: dict[str, Any] = {
            "seen": to_json(self._seen),
            "expected": self._expected,
            "fresh": self._learner_state is None,
            "seconds": self.seconds(),
        }
        if self._settled is not None:
            answer = self._settled
            kept["answer"] = policy_state(Policy(answer.version, answer.parts))
            kept["answer_state"] = answer.state
            values |= {"adopt_at": self._adopt_at, "report": dict(answer.report)}
        joined = State.join(kept)
        return State({**joined.values, **values}, joined.tensors)

    def load_state(self, state: State) -> None:
        """The inverse of `state`, on every rank; call `start` after it."""
        values = state.values
        self.policy = policy_of(state.part("policy"))
        self._seen, self._expected = from_json(values["seen"]), dict(values["expected"])
        spent = values["seconds"]
        self.stall_seconds, self.launch_seconds = spent["stall"], spent["launch"]
        self.learner_seconds = spent["learner"]
        self._learner_state = None if values["fresh"] else state.part("learner")
        self.made.load_state(state.part("made"))
        if "adopt_at" in values:
            self._adopt_at = values["adopt_at"]
            if self._source is not None:
                pending = policy_of(state.part("answer"))
                answer_state = state.part("answer_state")
                self._settled = Answer(pending.version, pending.parts, answer_state, values["report"])

    def _broadcast(self, answer: Answer | None) -> tuple[Answer, Mapping[str, Any]]:
        """Rank 0's answer on every rank: version, changed parts and report. Tensors go by collectives of their own."""
        if self.group.world == 1:
            assert answer is not None
            return answer, answer.report
        told = None
        if answer is not None:
            parts = {name: (dict(part.values), _shapes(part)) for name, part in answer.parts.items()}
            told = (answer.version, parts, dict(answer.report))
        version, parts, report = self.group.share(told)
        received = {}
        for name, (values, shapes) in parts.items():
            own = {} if answer is None else answer.parts[name].tensors
            tensors = {key: self.group.broadcast_tensor(own.get(key), dtype, shape) for key, dtype, shape in shapes}
            received[name] = Part(values, tensors)
        return Answer(version, received, State()), report

    def _apply(self, parts: Mapping[str, Part], model: torch.nn.Module) -> None:
        for name, part in parts.items():
            if self.rules[name].learns:
                self.rules[name].apply(part, model)


def newer(old: State | None, told: State) -> State:
    """The learner's state after an answer: its values; of a rule that sent no tensors, those it had."""
    kept = {} if old is None else dict(old.tensors)
    sent = {name.partition("/")[0] for name in told.tensors}
    kept = {name: one for name, one in kept.items() if name.partition("/")[0] not in sent}
    return State(told.values, {**kept, **told.tensors})


def policy_state(policy: Policy) -> State:
    """A policy as a state."""
    joined = State.join(dict(policy.parts))
    return State({"version": policy.version, "parts": joined.values}, joined.tensors)


def policy_of(state: State) -> Policy:
    """The inverse of `policy_state`."""
    parts = State(state.values["parts"], state.tensors)
    return Policy(state.values["version"], {name: parts.part(name) for name in parts.values})


def _shapes(part: Part) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    return [(name, one.dtype, tuple(one.shape)) for name, one in part.tensors.items()]
