"""Settings of fine-tuning, and the cells of its grid: one task, one learning rate, one seed each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mlpt.settings import Settings
from mlpt.tasks import TaskSource
from mlpt.training.optimizer import OptimizerConfig
from mlpt.training.schedule import ScheduleConfig


class SpanConfig(Settings):
    """How texts are cut and answers are read out for span tasks; the values are those of BERT's SQuAD script."""

    doc_stride: int = Field(128, gt=0, description="tokens between the starts of two windows of one context")
    question_length: int = Field(64, gt=0, description="tokens; the rest of a longer question is dropped")
    answer_length: int = Field(30, gt=0, description="tokens of the longest answer")
    n_best: int = Field(20, gt=0, description="best starts and best ends that are paired")
    null_threshold: float = Field(
        0.0, description="v2: no answer where the null score exceeds the best span's by more than this"
    )


class FinetuneConfig(Settings):
    """One fine-tuning: every task with every learning rate and seed, one cell each.

    Defaults are those of TAMT's and BERT's fine-tuning scripts (batch 32, 3 epochs, no weight decay) with a short
    warm-up, which small data sets need.
    """

    model: str = Field(description="a run's folder, a Hugging Face folder or a hub name")
    masks: str | None = Field(None, description="masks file: pruned weights stay zero during fine-tuning")
    tasks: tuple[str, ...] = Field(min_length=1)
    source: TaskSource = TaskSource()
    out: str = "finetuned"
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    learning_rates: tuple[float, ...] = Field((2e-5,), min_length=1, description="peak rates; the best is reported")
    batch_size: int = Field(32, gt=0, description="examples (windows, for span tasks) an optimiser step")
    epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, gt=0, description="overrides epochs")
    optimizer: OptimizerConfig = OptimizerConfig(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(shape="linear", warmup=0.06)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    max_length: int | None = Field(None, gt=8, description="tokens of a row; default: the task's own")
    subset: int | None = Field(None, gt=0, description="few-sample: rows of train, drawn by each run's seed")
    metric: str | None = Field(None, description="picks the best checkpoint; default: the task's own")
    eval_steps: int | None = Field(None, gt=0, description="evaluate every so many steps; default: eval_epochs")
    eval_epochs: float = Field(1.0, gt=0, description="evaluate every so many epochs")
    patience: int | None = Field(None, gt=0, description="stop after so many evaluations without a better one")
    length_window: int = Field(50, gt=0, description="batches whose rows are sorted by length together; 1: no sorting")
    tokens_per_batch: int = Field(16384, gt=0, description="padded tokens that go through the model at once")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU")
    checkpoint_steps: int = Field(500, gt=0, description="steps between checkpoints to resume from")
    keep_model: Literal["best", "last", "none"] = "best"
    predict_test: bool = Field(True, description="write predictions and submission files for test splits")
    span: SpanConfig = SpanConfig()

    @model_validator(mode="after")
    def _each_once(self) -> "FinetuneConfig":
        for name in ("tasks", "seeds", "learning_rates"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names a value twice")
        return self


_NOT_OF_A_CELL = {"tasks", "seeds", "learning_rates", "out", "checkpoint_steps", "keep_model", "predict_test"}


@dataclass(frozen=True)
class FinetuneCell:
    """One point of the grid; picklable. `folder` is where it keeps its checkpoints and leaves its results."""

    config: FinetuneConfig
    task: str
    learning_rate: float
    seed: int

    @property
    def folder(self) -> Path:
        return Path(self.config.out) / self.task / f"lr{self.learning_rate:g}-seed{self.seed}"

    def identity(self) -> dict[str, Any]:
        """Plain data that is equal for two runs of the same cell: all that changes its weights."""
        settings = json.loads(self.config.model_dump_json(exclude=_NOT_OF_A_CELL))
        settings["model"] = _whole_path(self.config.model)  # however the same folder was named
        settings["masks"] = self.config.masks and _whole_path(self.config.masks)
        return {**settings, "task": self.task, "learning_rate": self.learning_rate, "seed": self.seed}


def _whole_path(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def cells(config: FinetuneConfig) -> list[FinetuneCell]:
    """The whole grid, task by task."""
    return [
        FinetuneCell(config, task, rate, seed)
        for task in config.tasks
        for rate in config.learning_rates
        for seed in config.seeds
    ]
