"""Settings of fine-tuning, and the cells of its grid: one task, one learning rate, one seed each."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from mlpt.downstream.place import Place
from mlpt.settings import Settings
from mlpt.tasks import TASKS, TaskSource
from mlpt.tasks.features import SpanConfig
from mlpt.tasks.text_to_text import TextToTextConfig
from mlpt.training.config import RECORDED, CompileMode
from mlpt.training.optimizer import OptimizerConfig
from mlpt.training.schedule import ScheduleConfig


def _several(value: Any) -> Any:
    """A single value, or several with commas between them, where a list is wanted."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


TaskNames = Annotated[tuple[str, ...], BeforeValidator(_several)]
Seeds = Annotated[tuple[int, ...], BeforeValidator(_several)]
Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_several)]
ForTasks = str | dict[str, str] | None  # one value for every task, or task -> value


class DownstreamConfig(Settings):
    """What fine-tuning on one task and on many have in common."""

    model: str = Field(description="a run's folder, a Hugging Face folder or a hub name")
    masks: str | None = Field(
        None, description="masks file: pruned weights stay zero; default: those that lie beside the model's weights"
    )
    dense: bool = Field(False, description="leave the masks beside the model's weights aside")
    tasks: TaskNames = Field(
        min_length=1, description="names, or files (mine.csv, mine.yaml), with commas between them"
    )
    source: TaskSource = TaskSource()
    batch_size: int = Field(32, gt=0, description="rows (windows, for span tasks) an optimiser step")
    micro_batch_size: int | None = Field(
        None, gt=0, description="rows that go through the model at once, on one worker; default: all of a step's"
    )
    num_workers: int = Field(
        1, gt=0, description="Ray Train workers that share each step; 1: this process, without Ray"
    )
    epochs: float = Field(3.0, gt=0, description="how often training goes through the rows")
    max_steps: int | None = Field(None, gt=0, description="overrides epochs")
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(shape="linear", warmup=0.1)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    evaluate_every: int | None = Field(None, gt=0, description="evaluate every so many steps; default: evaluate_epochs")
    evaluate_epochs: float = Field(1.0, gt=0, description="evaluate every so many epochs")
    patience: int | None = Field(None, gt=0, description="stop after so many evaluations without a better one")
    tokens_per_batch: int = Field(16384, gt=0, description="padded tokens that go through the model at once")
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 on a GPU")
    compile: bool = Field(False, description="torch.compile the passes of training, for batches of any length")
    compile_mode: CompileMode = Field(
        "default", description="torch.compile's, of those that record no CUDA graphs: lengths of batches change"
    )
    checkpoint_every: int = Field(500, gt=0, description="steps between checkpoints to resume from")
    keep_model: Literal["best", "last", "none"] = Field(
        "best", description="whose weights are left behind: the best evaluation's, the last step's, or none"
    )
    predict_test: bool = Field(True, description="write predictions and submission files for test splits")
    span: SpanConfig = SpanConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks names a value twice")
        if self.dense and self.masks is not None:
            raise ValueError("dense and masks exclude each other; leave one out")
        if self.num_workers > -(-self.batch_size // (self.micro_batch_size or self.batch_size)):
            raise ValueError(
                f"{self.num_workers} workers need as many micro-batches a step; set micro_batch_size to at most "
                f"{self.batch_size // self.num_workers}"
            )
        if self.compile_mode != "default" and not self.compile:
            raise ValueError(
                f"compile_mode={self.compile_mode} is of a compiled model: set compile=true, or leave it out"
            )
        if self.compile_mode in RECORDED:
            raise ValueError(
                f"compile_mode={self.compile_mode} records CUDA graphs, one for each shape, and batches of fine-tuning "
                "change theirs: take default or max-autotune-no-cudagraphs"
            )
        return self

    def steps_between_evaluations(self, per_epoch: int) -> int:
        """As many as are asked for, where an epoch has `per_epoch` steps."""
        return self.evaluate_every or max(1, round(self.evaluate_epochs * per_epoch))


class FinetuneConfig(DownstreamConfig):
    """One fine-tuning: every task with every learning rate and seed, one cell each.

    Defaults are those of BERT's fine-tuning scripts (batch 32, 3 epochs, no weight decay) with a short warm-up, which
    small data sets need, and an evaluation an epoch. Published protocols are presets (`mlpt.downstream.command`).
    """

    out: str = Field("finetuned", description="folder or URI of the results")
    seeds: Seeds = Field(
        (1, 2, 3), min_length=1, description="of heads, the order of rows and dropout; a cell for each"
    )
    learning_rates: Rates = Field((2e-5,), min_length=1, description="peak rates; the best is reported")
    optimizer: OptimizerConfig = OptimizerConfig(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(shape="linear", warmup=0.06)
    max_length: int | None = Field(None, gt=8, description="tokens of a row; default: the task's own")
    subset: int | None = Field(None, gt=0, description="few-sample: rows of train, drawn by each run's seed")
    metric: ForTasks = Field(None, description="picks the best checkpoint; default: the task's own")
    select_split: ForTasks = Field(None, description="dev split that `metric` is taken of; default: the task's first")
    length_window: int = Field(50, gt=0, description="batches whose rows are sorted by length together; 1: no sorting")
    text_to_text: TextToTextConfig | None = Field(
        None, description="tasks as sequences in and out, by the model's own token predictions, without a task's head"
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("seeds", "learning_rates"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names a value twice")
        known = {*TASKS, *self.tasks, *(one.name for one in self.source.own)}
        for name in ("metric", "select_split"):
            value = getattr(self, name)
            unknown = sorted(value.keys() - known) if isinstance(value, Mapping) else []
            if unknown:
                raise ValueError(f"{name} names '{unknown[0]}', which is no task; write it as in {name}={{TASK: ...}}")
        if "lr" in self.optimizer.model_fields_set:
            raise ValueError("optimizer.lr has no effect beside learning_rates; set learning_rates, one or several")
        return self

    def to_yaml(self) -> str:
        """All settings, resolved, as a file that the same command takes: rates stand in `learning_rates` alone."""
        values = self.model_dump(mode="json", exclude={"optimizer": {"lr"}})
        return yaml.safe_dump(values, sort_keys=False)


def for_task(value: ForTasks, task: str) -> str | None:
    """What a setting says for `task`."""
    return value.get(task) if isinstance(value, Mapping) else value


# What changes no weight and no score, and what is part of an identity in another form (see `FinetuneCell.identity`).
ASIDE = {"out", "num_workers", "compile", "compile_mode", "checkpoint_every", "keep_model", "predict_test"}
BY_CONTENT = {"model", "masks", "dense", "source"}
_NOT_OF_A_CELL = {"tasks", "seeds", "learning_rates", "metric", "select_split"} | ASIDE | BY_CONTENT


@dataclass(frozen=True)
class FinetuneCell:
    """One point of the grid; picklable. `place` is where it keeps its checkpoints and leaves its results, `folder` the
    folder of that on this machine. run_id: of results at a URI (`mlpt.downstream.place`)."""

    config: FinetuneConfig
    task: str
    learning_rate: float
    seed: int
    run_id: str | None = None

    @property
    def place(self) -> Place:
        return Place(self.config.out, self.run_id, f"{self.task}/lr{self.learning_rate:g}-seed{self.seed}")

    @property
    def folder(self) -> Path:
        return self.place.folder

    @property
    def name(self) -> str:
        """What people call the cell by."""
        return f"{self.task}, lr {self.learning_rate:g}, seed {self.seed}"

    def identity(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        """Plain data that is equal for two runs of the same cell: all that changes its weights and scores.

        contents  digests of the rows, the model and the masks (`mlpt.downstream.fingerprint`): wherever the same ones
                  lie it is the same cell, and other ones under the same name make another.
        """
        without = {"text_to_text"} if self.config.text_to_text is None else set()  # as it always was
        settings = json.loads(self.config.model_dump_json(exclude=_NOT_OF_A_CELL | without))
        chosen = {"metric": self.config.metric, "select_split": self.config.select_split}
        own = {name: for_task(value, self.task) for name, value in chosen.items()}
        return {
            **settings,
            **own,
            **contents,
            "task": self.task,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
        }

    def named(self) -> dict[str, Any]:
        """How model, masks and rows were named: for people, no part of the identity."""
        named: dict[str, Any] = json.loads(self.config.model_dump_json(include=BY_CONTENT))
        return named


def cells(config: FinetuneConfig, run_id: str | None = None) -> list[FinetuneCell]:
    """The whole grid, task by task; `run_id` of results at a URI."""
    return [
        FinetuneCell(config, task, rate, seed, run_id)
        for task in config.tasks
        for rate in config.learning_rates
        for seed in config.seeds
    ]
