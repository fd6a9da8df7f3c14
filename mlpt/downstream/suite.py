"""What a suite is: it reads its data once, measures models one by one, and answers with lines of scores.

`mlpt.downstream.suites` names the suites there are; a class of one's own is named as `package.module:Class`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from mlpt.downstream.intervals import Estimate
from mlpt.downstream.subject import Precision, Subject
from mlpt.errors import UserError
from mlpt.settings import Settings

Progress = Callable[[int, int], None]  # (done, of all)


class SuiteConfig(Settings):
    """What every suite can be told."""

    data: str | None = Field(None, description="file, folder, or hub:NAME, as the suite reads it")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware multiplies it, else float32")
    tokens_per_batch: int = Field(8192, gt=0, description="that go through the model at once")


@dataclass(frozen=True)
class Line:
    """One score. `value`, `low`, `high`: the score and its 95 % interval, fractions.

    level     what `name` is one of: overall, field, phenomenon, paradigm, relation, ...
    count     questions (pairs, rows, repeats) behind the value.
    baseline  what guessing or always saying the same scores; None where that has no meaning.
    """

    level: str
    name: str
    metric: str
    value: float
    low: float
    high: float
    count: int
    baseline: float | None = None

    @classmethod
    def of(
        cls, level: str, name: str, metric: str, estimate: Estimate, count: int, baseline: float | None = None
    ) -> "Line":
        """A line of an estimate."""
        return cls(level, name, metric, estimate.value, estimate.low, estimate.high, count, baseline)


@dataclass(frozen=True)
class Result:
    """Scores of one model. `notes`: one line each about what was left out, cut or not told apart."""

    lines: list[Line]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Suite:
    """One measure. Subclasses set `Config` and define `read` and `measure`."""

    Config: ClassVar[type[SuiteConfig]] = SuiteConfig
    details: ClassVar[frozenset[str]] = frozenset()  # levels that are too many to print; the JSON has them
    needs_head: ClassVar[bool] = True  # a model without a trained language-modelling head is refused

    def __init__(self, config: Any):
        """Reads the data: bad input is told before any model is scored. Raises `UserError`."""
        self.config = config
        self.read()

    def read(self) -> None:
        """Read what `config.data` names."""
        raise NotImplementedError(f"{type(self).__name__}.read")

    def measure(self, subject: Subject, progress: Progress) -> Result:
        """Score one model; the same model gets the same scores every time."""
        raise NotImplementedError(f"{type(self).__name__}.measure")

    def data(self, expected: str) -> str:
        """`config.data`. Raises `UserError` that names what is `expected` where there is none."""
        if self.config.data is None:
            raise UserError(f"it needs data: {expected}")
        return self.config.data
