"""What can be measured of a run, and reading it from what the run or a command after it has left."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mlpt.settings import Settings

Better = Literal["lower", "higher"]


class Reach(Settings):
    """How far training got before the meta-dev loss `of` an objective was at `loss` nats or below, at an evaluation.

    It is as fine as `train.evaluate_every`; nothing is interpolated. A run that never got there has no value.
    """

    loss: float
    of: str = "mlm"
    counted_in: Literal["tokens", "seconds", "steps"] = "tokens"


class Score(Settings):
    """Multi-task work: the selecting metric of a `task` on its first dev split, or `mean` of all tasks'.

    which  the evaluation with the best mean, the last one, or each metric's own best.
    """

    task: str = "mean"
    which: Literal["best", "last", "running_best"] = "best"


class Finetuned(Settings):
    """A score of `mlpt finetune` from the cell's model, with the run's seed.

    tasks     labelled tasks; the value is the mean of their selecting metrics.
    data_dir  folder of the original downloads, or hub:
    files     YAML files of own tasks, instead of or beside `tasks`.
    settings  others of `mlpt finetune`, such as learning_rates and max_steps.
    weights   a cell whose weights are fine-tuned, under this cell's masks; default: the cell's own model.
    which     the best checkpoint by the dev split, or the last.
    """

    tasks: list[str] = Field(default_factory=list)
    data_dir: str | None = None
    files: list[str] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    which: Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _some_task(self) -> "Finetuned":
        if not (self.tasks or self.files):
            raise ValueError("name tasks, or files of your own ones")
        return self


class Evaluated(Settings):
    """A score of `mlpt evaluate MODEL --suite`: the line `name` of the suite's result.

    suite     NAME or NAME=DATA, as on the command line: blimp, zorro, pos, a labelled task (its probe), ...
    settings  of the suite, such as {masking: plain}.
    name      of the line; metric where there are several of that name.
    """

    suite: str
    settings: dict[str, Any] = Field(default_factory=dict)
    name: str = "overall"
    metric: str | None = None


class Losses(Settings):
    """A figure of `mlpt evaluate MODEL`: the masks of this cell, if it has any, on a cell's weights.

    figure   mlm_loss, perplexity, density, or the distances kd_cosine and kd_mse to the dense model.
    weights  whose; default: the cell's own, under its own masks.
    batches  of 32 held-out blocks.
    """

    figure: Literal["mlm_loss", "perplexity", "density", "kd_cosine", "kd_mse"] = "mlm_loss"
    weights: str | None = None
    batches: int = Field(16, gt=0)


class Measurement(Settings):
    """One number of every run, in one of these ways.

    held_out  the loss of this objective on the test split, in nats, from the run's own evaluation at its end.
    reach     what it took to get to a loss on the meta-dev split.
    summary   a number in the run's summary.json (results.json of multi-task work), by its dotted path; `A / B` is the
              ratio of two, `A + B` their sum.
    score     of multi-task work. finetune, evaluate, losses: by a command after the run.
    better    for the table's reader: lower or higher values; default: lower losses, higher scores.
    percent   shown x 100.
    digits    behind the point, in tables.
    cells     those that have it; default: all.
    """

    held_out: str | None = None
    reach: Reach | None = None
    summary: str | None = None
    score: Score | None = None
    finetune: Finetuned | None = None
    evaluate: Evaluated | None = None
    losses: Losses | None = None
    better: Better | None = None
    percent: bool | None = None
    digits: int | None = Field(None, ge=0, le=12)
    cells: list[str] | None = None

    @field_validator("score", mode="before")
    @classmethod
    def _of_task(cls, value: Any) -> Any:
        return {"task": value} if isinstance(value, str) else value

    @field_validator("evaluate", mode="before")
    @classmethod
    def _of_suite(cls, value: Any) -> Any:
        return {"suite": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way(self) -> "Measurement":
        if sum(getattr(self, way) is not None for way in WAYS) != 1:
            raise ValueError(f"is measured in one way, one of {', '.join(WAYS)}")
        return self

    @property
    def way(self) -> str:
        """Which of the ways it is."""
        return next(way for way in WAYS if getattr(self, way) is not None)

    @property
    def is_score(self) -> bool:
        """A fraction of 1 that is the better the higher it is, unless the declaration says otherwise."""
        return self.way in ("score", "finetune", "evaluate")

    @property
    def better_is(self) -> Better | None:
        """`lower` or `higher`, where that is known."""
        implied: Better | None = "higher" if self.is_score else None if self.summary is not None else "lower"
        return self.better or implied

    @property
    def unit(self) -> str:
        """For people."""
        if self.percent or (self.percent is None and self.is_score):
            return "x 100"
        if self.reach is not None:
            return self.reach.counted_in
        loss = self.held_out is not None or (self.losses is not None and self.losses.figure == "mlm_loss")
        return "nats" if loss else ""

    def show(self, value: float, signed: bool = False) -> str:
        """`value` for a table."""
        scaled = self.unit == "x 100"
        digits = self.digits
        if digits is None:
            digits = 1 if scaled else 0 if self.unit in ("tokens", "steps") else 3
        return f"{value * (100 if scaled else 1):{'+' if signed else ''},.{digits}f}"

    @property
    def weights(self) -> str | None:
        """The cell whose weights are measured, where it is another one."""
        return next((one.weights for one in (self.finetune, self.losses) if one is not None), None)

    @property
    def has_command(self) -> bool:
        """True if it takes a command after the run."""
        return self.way in ("finetune", "evaluate", "losses")


WAYS = ("held_out", "reach", "summary", "score", "finetune", "evaluate", "losses")
