"""Which task each row of a multi-task batch comes from: CA-MTL's MT-uncertainty and what it is compared with.

A sampler is small: settings, one class, and a state of plain numbers. All draws are addressed by (seed, purpose, step).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Union

import numpy as np
from pydantic import Field, SerializeAsAny, field_validator

from mlpt.errors import UserError
from mlpt.meta.joint_lookahead import LookaheadConfig
from mlpt.meta.policy import MIXTURE, Part, Policy
from mlpt.meta.rules import rule_class, rule_config
from mlpt.meta.rules.base import RuleConfig
from mlpt.randomness import numpy_generator
from mlpt.settings import Settings

Row = tuple[int, int]  # (task id, row of that task's training data)
Classes = Sequence[int | np.ndarray]  # by task id: a number, or (rows,) numbers
Score = Callable[[Sequence[Row]], np.ndarray]  # rows -> (n,) entropy in nats of the model's prediction for each


class RowStream:
    """The rows of each task in shuffled order, pass after pass; its state is how many rows each task has given."""

    def __init__(self, sizes: Sequence[int], seed: int):
        self.sizes, self.seed = list(sizes), seed
        self.taken = [0] * len(self.sizes)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # task -> its current pass and that pass's order

    def take(self, task: int, count: int) -> list[Row]:
        """The next `count` rows of `task`, over the end of a pass if need be."""
        return [self._next(task) for _ in range(count)]

    def take_batch(self, task: int, count: int) -> list[Row]:
        """The next `count` rows of `task`, fewer where the pass ends, as a data loader's batches are."""
        left = self.sizes[task] - self.taken[task] % self.sizes[task]
        return self.take(task, min(count, left))

    def _next(self, task: int) -> Row:
        size = self.sizes[task]
        turn, place = divmod(self.taken[task], size)
        if self._orders.get(task, (-1,))[0] != turn:
            self._orders[task] = (turn, numpy_generator(self.seed, f"rows of task {task}", turn).permutation(size))
        self.taken[task] += 1
        return task, int(self._orders[task][1][place])


class TaskSampler:
    """Base of the samplers. Subclasses set `Config` (with the field `rule`) and define `batch`.

    sizes       training rows of each task, by task id. names: the tasks' names, likewise.
    classes     what a prediction of each task chooses among: a number of classes, 1 for a regression, or one number for
                each training row (a span's tokens).
    batch_size  rows in a training batch.
    """

    needs_scores: ClassVar[bool] = False

    class Config(Settings):
        """No settings."""

    def __init__(
        self,
        config: Any,
        names: Sequence[str],
        sizes: Sequence[int],
        classes: Classes,
        batch_size: int,
        seed: int,
    ):
        if not sizes or min(sizes) < 1:
            raise UserError("every task needs at least one training row; leave out the empty ones")
        self.config, self.names, self.classes = config, list(names), list(classes)
        self.batch_size, self.seed = batch_size, seed
        self.stream = RowStream(sizes, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that count as one epoch: as many rows as the tasks have together."""
        return math.ceil(sum(self.stream.sizes) / self.batch_size)

    def batch(self, step: int, score: Score | None = None) -> list[Row]:
        """The rows of step `step` (0-based). Steps are asked for in order, so that no row is given twice in a pass."""
        raise NotImplementedError(f"{type(self).__name__}.batch")

    def state(self) -> dict[str, Any]:
        """JSON values from which `load_state` goes on exactly."""
        return {"taken": list(self.stream.taken)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.stream.taken = list(state["taken"])


class Proportional(TaskSampler):
    """All rows of all tasks in one shuffled order: what the published code does where its README says sequential."""

    class Config(Settings):
        """No settings beside the rule's name."""

        rule: Literal["proportional"] = "proportional"

    _order: tuple[int, np.ndarray] | None = None  # an epoch and its order of all rows

    def batch(self, step: int, score: Score | None = None) -> list[Row]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            shuffled = numpy_generator(self.seed, "proportional", epoch).permutation(sum(self.stream.sizes))
            self._order = (epoch, shuffled)
        order = self._order[1]
        return _located(order[place * self.batch_size : (place + 1) * self.batch_size], self.stream.sizes)


class Sequential(TaskSampler):
    """One task after another, each once through in an epoch: what the published README describes."""

    class Config(Settings):
        """No settings beside the rule's name."""

        rule: Literal["sequential"] = "sequential"

    @property
    def steps_per_epoch(self) -> int:
        return sum(_batches(self.stream.sizes, self.batch_size))

    def batch(self, step: int, score: Score | None = None) -> list[Row]:
        place = step % self.steps_per_epoch
        ends = np.cumsum(_batches(self.stream.sizes, self.batch_size))
        return self.stream.take_batch(int(np.searchsorted(ends, place, side="right")), self.batch_size)


class _Weighted(TaskSampler):
    """Tasks drawn independently with fixed or adopted probabilities, for each row or for a whole step."""

    def probabilities(self) -> np.ndarray:
        """(tasks,) float64, summing to 1."""
        raise NotImplementedError(f"{type(self).__name__}.probabilities")

    def batch(self, step: int, score: Score | None = None) -> list[Row]:
        draws = 1 if self.config.draw == "step" else self.batch_size
        generator = numpy_generator(self.seed, "task draws", step)
        tasks = generator.choice(len(self.names), size=draws, p=self.probabilities())
        each = self.batch_size // draws
        return [row for task in tasks for row in self.stream.take(int(task), each)]


class Uniform(_Weighted):
    """Every task equally likely, whatever its size (the published flag of that name does nothing by itself, CA-2)."""

    class Config(Settings):
        """draw: one task for each `row` of a batch (default: batches mix tasks, as the other samplers') or `step`."""

        rule: Literal["uniform"] = "uniform"
        draw: Literal["row", "step"] = "row"

    def probabilities(self) -> np.ndarray:
        return np.full(len(self.names), 1 / len(self.names))


class Temperature(_Weighted):
    """Probability proportional to size^(1/temperature): 1 is proportional, large ones approach uniform."""

    class Config(Settings):
        """temperature  > 0: tasks are drawn by the number of their rows to the power 1 / temperature.
        draw         one task for each `row` of a batch, or for a whole `step`.
        """

        rule: Literal["temperature"] = "temperature"
        temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
        draw: Literal["row", "step"] = "row"

    def probabilities(self) -> np.ndarray:
        logits = np.log(np.array(self.stream.sizes, dtype=np.float64)) / self.config.temperature
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()


class PolicySampler(_Weighted):
    """Tasks drawn from the mixture of the newest `Policy`, one a step; a meta-learner's rule makes the policies."""

    class Config(Settings):
        """learner    the meta-learner's rule over tasks and its settings.
        lookahead  how a rule that differentiates looks ahead.
        interval   steps between updates.
        draw       one task for a whole `step`.
        """

        rule: Literal["policy"] = "policy"
        learner: SerializeAsAny[RuleConfig] = Field(default_factory=lambda: rule_config(MIXTURE, "mometas"))
        lookahead: LookaheadConfig = LookaheadConfig()
        interval: int = Field(default=50, ge=1)
        draw: Literal["step"] = "step"

        @field_validator("lookahead")
        @classmethod
        def _looks_for_itself(cls, lookahead: LookaheadConfig) -> LookaheadConfig:
            if lookahead.follows_training:
                raise ValueError(f"engine {lookahead.engine} is of pretraining: set sampler.lookahead.engine=auto")
            return lookahead

        @field_validator("learner", mode="before")
        @classmethod
        def _resolved(cls, learner: Any) -> Any:
            found = rule_config(MIXTURE, learner, "sampler.learner")
            if rule_class(MIXTURE, found.rule).needs_progress:
                raise ValueError(f"rule '{found.rule}' is of pretraining: take another sampler.learner")
            return found

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.policy = Policy(0, {MIXTURE: Part({name: 1 / len(self.names) for name in self.names})})
        self.draws = dict.fromkeys(self.names, 0)

    def adopt(self, policy: Policy) -> None:
        """Draw from `policy` from now on; the count of draws starts anew."""
        self.policy = policy
        self.draws = dict.fromkeys(self.names, 0)

    def probabilities(self) -> np.ndarray:
        mixture = np.array([self.policy.values(MIXTURE).get(name, 0.0) for name in self.names])
        return mixture / mixture.sum()

    def batch(self, step: int, score: Score | None = None) -> list[Row]:
        rows = super().batch(step, score)
        self.draws[self.names[rows[0][0]]] += 1
        return rows

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "policy": [self.policy.version, dict(self.policy.values(MIXTURE))],
            "draws": dict(self.draws),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        version, mixture = state["policy"]
        self.policy, self.draws = Policy(version, {MIXTURE: Part(mixture)}), dict(state["draws"])


class MtUncertainty(TaskSampler):
    """The rows of which the model is least certain, out of a batch of candidates from every task (CA-MTL)."""

    needs_scores = True

    class Config(Settings):
        """score       `paper`: entropy / (ln classes * a constant), or `code`: normalised entropy times the task's mean
                       over the greatest task mean (CA-5). Default: the paper's, which ranks rows, not tasks.
        borrow         regression task -> the task whose scores it takes, rank by rank, where both are trained.
        regression     score of regression rows that borrow none: `mean` of all other candidates, or `zero` as in the
                       published code, which then never trains them. Default `mean`.
        rescore_every  candidates are drawn and scored every n steps; the steps between take the next best of them.
                       1 is published; n costs 1/n as much (CA-12), and is at most the number of tasks.
        epoch          `full` as published: as if every task were as large as the largest; `uniform`: what the
                       published uniform flag turns it into, shorter by the batch size.
        epoch_share    factor on the epoch's length (published: percent_of_max_data_size).
        """

        rule: Literal["mt_uncertainty"] = "mt_uncertainty"
        score: Literal["paper", "code"] = "paper"
        borrow: dict[str, str] = Field(default_factory=lambda: {"stsb": "mrpc"})
        regression: Literal["mean", "zero"] = "mean"
        rescore_every: int = Field(default=1, ge=1)
        epoch: Literal["full", "uniform"] = "full"
        epoch_share: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.config.rescore_every > len(self.names):
            raise UserError(
                f"rescore_every={self.config.rescore_every} needs as many candidate batches and there are "
                f"{len(self.names)} tasks; lower it"
            )
        self._pool: list[Row] = []  # scored candidates that are still to be trained on, best first
        self._pool_until = -1  # the step at which the pool is stale

    @property
    def steps_per_epoch(self) -> int:
        steps = max(_batches(self.stream.sizes, self.batch_size)) * len(self.names) * self.config.epoch_share
        return max(1, int(steps / self.batch_size if self.config.epoch == "uniform" else steps))

    def batch(self, step: int, score: Score | None = None) -> list[Row]:
        if step >= self._pool_until or not self._pool:
            if score is None:
                raise TypeError("mt_uncertainty needs a score function")
            candidates = self.candidates()
            self._pool = [candidates[place] for place in self.ranking(candidates, score(candidates))]
            self._pool_until = step + self.config.rescore_every
        chosen, self._pool = self._pool[: self.batch_size], self._pool[self.batch_size :]
        return chosen

    def candidates(self) -> list[Row]:
        """One batch of every task, in the order of the tasks."""
        return [row for task in range(len(self.names)) for row in self.stream.take_batch(task, self.batch_size)]

    def ranking(self, candidates: Sequence[Row], entropies: np.ndarray) -> np.ndarray:
        """Places in `candidates`, most uncertain first; ties keep their order."""
        tasks = np.array([task for task, _ in candidates])
        scores = uncertainty(entropies, tasks, self._choices(candidates), self.config.score)
        scores = self._regression_scores(scores, tasks)
        # float32, so that equal distributions of different tasks tie instead of being ordered by rounding.
        return np.argsort(-scores.astype(np.float32), kind="stable")

    def _choices(self, candidates: Sequence[Row]) -> np.ndarray:
        """(n,) what the prediction of each candidate chooses among."""
        own = [(self.classes[task], row) for task, row in candidates]
        return np.array([classes if isinstance(classes, int) else classes[row] for classes, row in own])

    def _regression_scores(self, scores: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        scores = scores.copy()
        regressions = [task for task, classes in enumerate(self.classes) if isinstance(classes, int) and classes == 1]
        classified = ~np.isin(tasks, regressions)
        for task in regressions:
            mine = np.flatnonzero(tasks == task)
            if not len(mine):
                continue
            if self.config.regression == "mean" and classified.any():
                scores[mine] = scores[classified].mean()
            donor = self.config.borrow.get(self.names[task])
            if donor in self.names:
                given = np.flatnonzero(tasks == self.names.index(donor))[: len(mine)]
                scores[mine[: len(given)]] = scores[given]
        return scores

    def state(self) -> dict[str, Any]:
        return {**super().state(), "pool": [list(row) for row in self._pool], "pool_until": self._pool_until}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._pool = [(task, row) for task, row in state["pool"]]
        self._pool_until = state["pool_until"]


def uncertainty(
    entropies: np.ndarray, tasks: np.ndarray, classes: np.ndarray, score: Literal["paper", "code"]
) -> np.ndarray:
    """(n,) float64 scores of candidates with these entropies (n,) in nats and task ids (n,).

    code   H m_t / max_t m_t with H = entropy / (ln C + 1e-5) and m_t the mean H of the row's task.
    paper  entropy / (ln C * max_t m_t) with m_t the mean entropy of a task: a constant apart from entropy / ln C.

    classes  C of each candidate, (n,): the task's classes, or the tokens among which a span's start and end are chosen,
             so that ln C is the entropy of knowing nothing. Rows of a regression (C = 1) score 0.
    """
    entropies = np.asarray(entropies, dtype=np.float64)
    widest = np.log(np.asarray(classes, dtype=np.float64))  # ln C, (n,)
    present = np.unique(tasks)
    if score == "code":
        normalised = entropies / (widest + 1e-5)
        means = np.zeros(present.max() + 1)
        means[present] = [normalised[tasks == task].mean() for task in present]
        return normalised * means[tasks] / (means.max() or 1.0)
    greatest = max(entropies[tasks == task].mean() for task in present)
    relative = np.divide(entropies, widest, out=np.zeros_like(entropies), where=widest > 0)
    return relative / (greatest or 1.0)


SAMPLERS: dict[str, type[TaskSampler]] = {
    "mt_uncertainty": MtUncertainty,
    "uniform": Uniform,
    "sequential": Sequential,
    "proportional": Proportional,
    "temperature": Temperature,
    "policy": PolicySampler,
}

# The configuration of any one sampler; its field `rule` says which.
_CONFIGS = tuple(sampler.Config for sampler in SAMPLERS.values())
SamplerConfig: Any = Annotated[Union[_CONFIGS], Field(discriminator="rule")]  # noqa: UP007 (a union made at run time)


def make_sampler(
    config: Any, names: Sequence[str], sizes: Sequence[int], classes: Classes, batch_size: int, seed: int
) -> TaskSampler:
    """The sampler that `config.rule` names."""
    return SAMPLERS[config.rule](config, names, sizes, classes, batch_size, seed)


def _batches(sizes: Sequence[int], batch_size: int) -> list[int]:
    return [math.ceil(size / batch_size) for size in sizes]


def _located(places: np.ndarray, sizes: Sequence[int]) -> list[Row]:
    """Places in the tasks laid end to end -> (task, row)."""
    ends = np.cumsum(sizes)
    tasks = np.searchsorted(ends, places, side="right")
    return [(int(task), int(place - (ends[task] - sizes[task]))) for task, place in zip(tasks, places, strict=True)]
