"""What all trials of a sweep share, and what a kind of trial must be able to say and do."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlpt.config import RuntimeConfig
from mlpt.tuning.searching import PAUSING
from mlpt.tuning.space import Space

if TYPE_CHECKING:
    from mlpt.tuning.reporter import Reporter

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep share; it travels through the object store once.

    overrides  nested settings over the space's recipe and base: the user's.
    folder     the sweep's folder.
    runtime    what a trial takes of the cluster.
    data       pretraining: the prepared blocks, which every trial maps into its memory. Multi-task: a folder of
               tokenised tasks, which the first trial fills.
    length     tokens in a row: what a step costs of the budget is `batch_size` rows.
    resources  what Ray Tune reserves for a trial.
    """

    space: Space
    overrides: dict[str, Any]
    folder: Path
    runtime: RuntimeConfig
    data: str
    length: int
    resources: dict[str, float]

    @property
    def is_nested(self) -> bool:
        """True when trials are runs of their own on several Ray Train workers; else they train in Tune's process."""
        return self.runtime.most_workers > 1

    @property
    def pausing(self) -> bool:
        """True when the scheduler pauses trials, so that Tune must be given checkpoints."""
        return self.space.scheduler in PAUSING


@dataclass(frozen=True)
class Budget:
    """What a trial may spend: `steps`, cut into equal parts of `every`, each ended by an evaluation."""

    steps: int
    every: int
    tokens_per_step: int

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step


class Job(Protocol):
    """A kind of trial. `config` is a point's configuration without the sweep's budget."""

    follow_up: str  # the command that takes a winner's recipe, which stands for {}

    def config(self, space: Space, overrides: Mapping[str, Any], point: Mapping[str, Any], seed: int) -> Any:
        """The configuration of one trial. The point wins over the user, the user over the base. Raises `UserError`."""

    def runtime(self, config: Any, overrides: Mapping[str, Any]) -> RuntimeConfig:
        """What a trial takes of the cluster."""

    def check(self, space: Space, config: Any) -> None:
        """Raise `UserError` for a metric that no trial reports (Tune would wait for it) and other misfits."""

    def data(self, config: Any, folder: Path, say: Say) -> tuple[str, int]:
        """`Plan.data` and `Plan.length`."""

    def budget(self, config: Any, space: Space, length: int) -> Budget:
        """What a trial of `config` may spend on rows of `length` tokens."""

    def train(self, config: Any, plan: Plan, run_dir: Path, reporter: "Reporter") -> None:
        """Run the trial to its end, from its last checkpoint if there is one, telling `reporter`."""

    def recipe(self, config: Any, space: Space, length: int) -> str:
        """The configuration as YAML that `follow_up` takes, with the sweep's budget."""


def equal_parts(space: Space, tokens_per_step: int, unit: int = 1) -> Budget:
    """The space's tokens, rounded up to steps and to equal parts of a multiple of `unit` steps."""
    part = space.tokens / (tokens_per_step * space.evaluations)
    every = unit * max(1, math.ceil(part / unit))
    return Budget(every * space.evaluations, every, tokens_per_step)
