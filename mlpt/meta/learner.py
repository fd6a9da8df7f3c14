"""The meta-learner: rules, the meta-data, and a copy of the model that snapshots are loaded into. Knows no Ray.

Deterministic: texts and noise are addressed by (seed, purpose, snapshot.step), the model is in eval mode (no dropout)
and in float32 whatever the workers train in. On a CPU equal bits need an equal thread count too
(`torch.set_num_threads`), which whoever hosts the learner sets.
"""

import resource
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator

from mlpt.arms import Arms
from mlpt.data.batch import Source
from mlpt.data.sources import TEXTS
from mlpt.errors import UserError
from mlpt.meta.context import MetaContext, check_finite
from mlpt.meta.joint_lookahead import LookAhead, LookaheadConfig
from mlpt.meta.policy import MIXTURE, Answer, Evidence, Part, Policy
from mlpt.meta.replicas import Gradients, Others, averaged, found_state
from mlpt.meta.rules import make_rules, rule_class, rule_config
from mlpt.meta.rules.base import LookaheadRule, Rule, RuleConfig
from mlpt.meta.snapshot import Snapshot, load_snapshot
from mlpt.settings import Settings
from mlpt.storage.state import State

TASKS = "tasks"  # in a target: a list of labelled tasks
LONGEST_DEFAULT_LAG = 20  # steps; a quick rule answers well within them
_MOVED = {"mixture": "meta.rules.mixture", "masks": "meta.rules.masks"}  # keys of earlier versions


def _learned_mixture() -> dict[str, RuleConfig]:
    return {MIXTURE: rule_config(MIXTURE, "mometas")}


class MetaConfig(Settings):
    """interval   steps between updates (the first is launched at step 0 and takes baselines).
    lag        every rank adopts the answer at exactly this many steps after the snapshot; 0: training waits for it.
               Default: 20, or the interval where that is shorter.
    rules      part of the policy -> the rule that learns it and its settings: {mixture: {rule: mometas, lr: .1}}.
    target     what the run is for, a weighted mean of held-out losses: {NAME: weight} or [NAME, ...], where a name is
               an arm's (mlm@legal), an objective's, a domain's or a labelled task's, which may train or not; or
               {texts: SOURCE}, a small text of its own, named as in data.source, which nothing trains on.
               {tasks: [sst2, mine.csv]} is short for {sst2: 1, mine: 1}. Empty: all that train, equally.
    lookahead  how rules that differentiate look ahead.
    replicas   learners among which the rows of every look-ahead are shared out, each an actor of its own with
               runtime.meta_cpus and meta_gpus; hypergradients are averaged.
    """

    interval: int = Field(default=100, ge=1)
    lag: int = Field(default_factory=lambda data: min(LONGEST_DEFAULT_LAG, data.get("interval", 0)), ge=0)
    rules: dict[str, SerializeAsAny[RuleConfig]] = Field(default_factory=_learned_mixture)
    target: dict[str, float | str] = Field(default_factory=dict)
    lookahead: LookaheadConfig = LookaheadConfig()
    replicas: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        for old in _MOVED.keys() & (values.keys() if isinstance(values, Mapping) else set()):
            raise ValueError(
                f"meta.{old} is now {_MOVED[old]}; engine, inner_steps and batch sizes of a look-ahead "
                "are meta.lookahead, its target is meta.target"
            )
        return values

    @field_validator("rules", mode="before")
    @classmethod
    def _resolved(cls, rules: Any) -> Any:
        if not isinstance(rules, Mapping):
            raise ValueError("name a part and its rule, such as {mixture: {rule: mometas}}")
        try:
            return {part: rule_config(part, values) for part, values in rules.items() if values is not None}
        except UserError as error:
            raise ValueError(str(error)) from error

    @field_validator("target", mode="before")
    @classmethod
    def _named(cls, target: Any) -> Any:
        """`[mlm]` and `mlm` are short for `{mlm: 1}`."""
        if isinstance(target, str):
            target = [target]
        if isinstance(target, Mapping) and TASKS in target:
            named = [target[TASKS]] if isinstance(target[TASKS], str) else target[TASKS]
            if not isinstance(named, list | tuple) or not named:
                raise ValueError(
                    f"{TASKS} of a target are names of labelled tasks, such as [sst2]; weights: {{sst2: 2}}"
                )
            target = {name: weight for name, weight in target.items() if name != TASKS} | dict.fromkeys(named, 1.0)
        return dict.fromkeys(target, 1.0) if isinstance(target, list | tuple) else target

    @field_validator("target")
    @classmethod
    def _weighted(cls, target: dict[str, float | str]) -> dict[str, float | str]:
        for name, weight in target.items():
            if isinstance(weight, str) != (name == TEXTS):
                raise ValueError(f"{name}: {weight} is no weight; give numbers above 0, or {{{TEXTS}: FILE OR FOLDER}}")
            if not isinstance(weight, str) and not 0 < weight < float("inf"):
                raise ValueError("the weights of a target are numbers above 0")
        return target

    @property
    def texts(self) -> str | None:
        """The target's own text, if it has one."""
        found = self.target.get(TEXTS)
        return None if found is None else str(found)

    @property
    def weights(self) -> dict[str, float]:
        """The target's weights by name; its own texts count as 1."""
        return {name: 1.0 if isinstance(weight, str) else weight for name, weight in self.target.items()}

    @property
    def keeps_gradients(self) -> bool:
        """Whether training keeps the gradients of its arms for the meta-learner."""
        looks_ahead = any(issubclass(rule_class(part, one.rule), LookaheadRule) for part, one in self.rules.items())
        return looks_ahead and self.lookahead.follows_training

    @model_validator(mode="after")
    def _weighs_losses_alone(self) -> "MetaConfig":
        if self.lookahead.follows_training:
            for part, settings in self.rules.items():
                if part != MIXTURE and issubclass(rule_class(part, settings.rule), LookaheadRule):
                    raise ValueError(
                        f"engine {self.lookahead.engine} differentiates by the mixture alone, and rule "
                        f"'{settings.rule}' learns {part}: set lookahead.engine=auto"
                    )
        return self

    @model_validator(mode="after")
    def _can_be_shared_out(self) -> "MetaConfig":
        if self.replicas == 1:
            return self
        classes = [rule_class(part, settings.rule) for part, settings in self.rules.items()]
        for one in classes:
            if one.needs_weights and not issubclass(one, LookaheadRule):
                raise ValueError(f"replicas share out look-aheads, and rule '{one.name}' makes none: set replicas=1")
        if not any(issubclass(one, LookaheadRule) for one in classes):
            raise ValueError("replicas share out look-aheads, and no rule of this run makes one: set replicas=1")
        return self

    @model_validator(mode="after")
    def _averages_within_an_interval(self) -> "MetaConfig":
        if self.lookahead.averaged_steps > self.interval:
            raise ValueError(
                f"lookahead.averaged_steps ({self.lookahead.averaged_steps}) cannot exceed interval ({self.interval}), "
                "the steps there are between updates"
            )
        return self

    @model_validator(mode="after")
    def _one_answer_at_a_time(self) -> "MetaConfig":
        if self.lag > self.interval:
            raise ValueError(f"lag ({self.lag}) cannot exceed interval ({self.interval}): answers would overtake")
        return self


class Updates:
    """Rules, and the one look-ahead of those that differentiate: from a policy and evidence to the next parts."""

    def __init__(self, rules: Mapping[str, Rule], lookahead: LookaheadConfig, replicas: int = 1):
        self.rules, self._replicas = rules, replicas
        self._start = lookahead.start
        looks_ahead = any(isinstance(rule, LookaheadRule) for rule in rules.values())
        self._look_ahead = LookAhead(lookahead) if looks_ahead else None

    def first(self) -> Policy:
        """Version 0, in force before the first answer."""
        return first_policy(self.rules)

    def parts(
        self, policy: Policy, evidence: Evidence, context: MetaContext, others: Others | None = None
    ) -> dict[str, Part]:
        """The parts after this update. A part that stays is the same object.

        others  what the other replicas of the look-ahead have found; None: they are computed here, one by one.
        Raises `UserError` where a loss or a hypergradient to learn from is not finite.
        """
        check_finite(evidence.losses, "training", context.step)
        looking = self._looking(context)
        gradients: Gradients = {}
        if looking:
            found = [self.found(policy, context, 0)]
            found += others() if others else [self.found(policy, context, i) for i in range(1, self._replicas)]
            gradients, told = averaged(found)
            context.report.update(told)
        return {
            name: looking[name].descend(policy.parts[name], gradients[name], context)
            if name in looking
            else rule.update(policy.parts[name], evidence, context)
            if rule.begins(context.step)
            else policy.parts[name]
            for name, rule in self.rules.items()
        }

    def found(self, policy: Policy, context: MetaContext, replica: int) -> State:
        """What one replica finds on its rows of the look-ahead; empty where there is no look-ahead. No rule moves."""
        looking = self._looking(context)
        if not looking or self._look_ahead is None:
            return State()
        own = context.of_replica(replica, self._replicas)
        shares = {name: rule.share(policy.parts[name], own) for name, rule in looking.items()}
        return found_state(self._look_ahead.gradients(policy, shares, own), own.report)

    def _looking(self, context: MetaContext) -> dict[str, LookaheadRule]:
        """The rules that move by a look-ahead in this update."""
        if self._look_ahead is None or context.step < self._start or not self._look_ahead.can(context):
            return {}
        return {name: rule for name, rule in self.rules.items() if isinstance(rule, LookaheadRule)}

    def state(self, changed: Collection[str] | None = None) -> State:
        """All that the next update depends on besides the policy, by part; of parts that are not `changed` (None: all
        are) without tensors."""
        return State.join({name: _told(rule, changed is None or name in changed) for name, rule in self.rules.items()})

    def load_state(self, state: State) -> None:
        """Take back what `state` gave. Raises `UserError` when it is of other rules or arms."""
        for name, rule in self.rules.items():
            _check_same(name, state.part(name).values, rule)
            rule.load_state(state.part(name))


class MetaLearner:
    """Turns snapshots and evidence into policies.

    model       an `Encoder` of its own (bare: neither DDP nor torch.compile), float32, on the device to use.
    optimizer   an AdamW over it, with the groups and settings of the workers' own.
    sources     the rows of all arms.
    batch_size  rows in a training batch.
    steps       of the whole run, for rules that need its progress.
    """

    def __init__(
        self,
        config: MetaConfig,
        model: Any,
        optimizer: torch.optim.AdamW,
        sources: Mapping[str, Source],
        arms: Arms,
        seed: int,
        batch_size: int,
        steps: int = 0,
    ):
        self._target = arms.weights(config.weights, "meta.target")
        for name in dict.fromkeys([*arms.trained, *self._target]):
            source = sources[arms.every[name].source]
            if len(source.dev) == 0 or (name in arms.trained and len(source.train) == 0):
                raise UserError(
                    f"the meta-learner needs at least one block of training and one of meta-dev text of '{name}': give "
                    "more of it, or raise data.dev_share"
                )
        self._model, self._optimizer = model, optimizer
        self._arms, self._trained, self._sources = dict(arms.every), list(arms.trained), sources
        self._seed, self._batch_size = seed, batch_size
        self._lag, self._steps = config.lag, steps
        self._rules = make_rules(config.rules, arms.trained)
        self._updates = Updates(self._rules, config.lookahead, config.replicas)
        self._policy = self._updates.first()
        model.eval()

    @property
    def needs_weights(self) -> bool:
        """False: the rules ignore the snapshot's weights (and an update is all but free)."""
        return any(rule.needs_weights for rule in self._rules.values())

    @property
    def needs_moments(self) -> bool:
        """True: snapshots must carry AdamW's moments."""
        return any(rule.needs_moments for rule in self._rules.values())

    @property
    def policy(self) -> Policy:
        """The newest policy."""
        return self._policy

    def update(self, snapshot: Snapshot, evidence: Evidence, others: Others | None = None) -> Answer:
        """The next policy, one version up, with the state that belongs to it.

        `evidence` is what happened since the update before. The first call finds no earlier losses: rules that compare
        take their baseline then and leave their part alone.
        others  what the other replicas of the look-ahead found (`found`); None: this learner computes them too.
        Raises `UserError` for a snapshot of another model or without the moments that a rule needs.
        """
        begun = time.perf_counter()
        context = self._context(snapshot)
        device = next(self._model.parameters()).device.type
        with torch.autocast(device, enabled=False):
            parts = self._updates.parts(self._policy, evidence, context, others)
        changed = {name: part for name, part in parts.items() if part is not self._policy.parts[name]}
        state = self._updates.state(changed)
        report = {**context.report, "peak_bytes": peak_bytes(device), "seconds": time.perf_counter() - begun}
        answer = Answer(self._policy.version + 1, changed, state, report)
        self._policy = self._policy.after(answer)
        return answer

    def found(self, snapshot: Snapshot, replica: int) -> State:
        """What replica `replica` finds on its rows of the look-ahead, once it was told the state to go on from.

        Nothing of the learner's state advances.
        """
        context = self._context(snapshot)
        with torch.autocast(next(self._model.parameters()).device.type, enabled=False):
            return self._updates.found(self._policy, context, replica)

    def state(self) -> State:
        """All that the next update depends on besides the policy, by part."""
        return self._updates.state()

    def start(self, policy: Policy, state: State | None) -> None:
        """Go on from `policy` with `state()`; None: with the rules' first state.

        Raises `UserError` when they are of other rules, or a rule can do nothing with the model.
        """
        for rule in self._rules.values():
            rule.check(self._model)
        if policy.parts.keys() != self._rules.keys():
            raise UserError(
                f"the meta-learner's state has the parts {', '.join(policy.parts) or 'none'} and this run "
                f"{', '.join(self._rules) or 'none'}: resume it as it was"
            )
        if state is not None:
            self._updates.load_state(state)
        self._policy = policy

    def _context(self, snapshot: Snapshot) -> MetaContext:
        if self.needs_moments and snapshot.exp_avg is None:
            raise UserError("a rule of this run looks ahead: take snapshots with moments=True")
        if self.needs_weights:
            load_snapshot(self._model, self._optimizer, snapshot)
            for name, rule in self._rules.items():
                rule.apply(self._policy.parts[name], self._model)
        self._model.eval()
        for objective in self._model.objectives.values() if self.needs_weights else ():
            objective.refresh(self._model)
        return MetaContext(
            self._model,
            self._optimizer,
            self._arms,
            self._trained,
            self._target,
            self._sources,
            self._seed,
            self._batch_size,
            snapshot.step,
            min(1.0, (snapshot.step + self._lag) / self._steps) if self._steps else 0.0,
            made=snapshot.made,
        )


def first_policy(rules: Mapping[str, Rule]) -> Policy:
    """Version 0, in force before the first answer."""
    return Policy(0, {name: rule.first() for name, rule in rules.items()})


def _told(rule: Rule, changed: bool) -> State:
    """A rule's state with the name that it belongs to; tensors only where they may have changed."""
    state = rule.state()
    return State({"rule": rule.name, "arms": rule.arms, **state.values}, state.tensors if changed else {})


def _check_same(part: str, values: Mapping[str, Any], rule: Rule) -> None:
    for key, mine in (("rule", rule.name), ("arms", rule.arms)):
        if values.get(key, mine) != mine:
            raise UserError(f"the state of {part} has {key} {values[key]} and this run {mine}: resume it as it was")


def peak_bytes(device: str) -> int:
    """Peak device memory on a GPU, else peak resident memory of this process, so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
