"""The settings of the inner loop."""

import math
from typing import Literal

from pydantic import Field, model_validator

from mlpt.settings import Settings
from mlpt.training.draw import Draw
from mlpt.training.optimizer import OptimizerConfig
from mlpt.training.schedule import ScheduleConfig


def half(batch_size: int) -> int:
    """The default micro-batch, with which 0, 1 and 2 workers train on the same numbers.

    A batch that cannot be halved stays whole; so does one of two blocks, because contrastive losses need two.
    """
    return batch_size // 2 if batch_size % 2 == 0 and batch_size > 2 else batch_size


CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
RECORDED: tuple[CompileMode, ...] = ("reduce-overhead", "max-autotune")  # as CUDA graphs


class TrainConfig(Settings):
    """How the inner loop runs. Batch sizes count blocks."""

    steps: int = Field(1000, gt=0, description="optimiser steps")
    tokens: int | None = Field(None, gt=0, description="budget in tokens; when given, it sets the steps")
    batch_size: int = Field(32, gt=0, description="blocks in a global step")
    micro_batch_size: int = Field(
        default_factory=lambda data: half(data.get("batch_size", 1)),
        gt=0,
        description="blocks in one forward pass; default: half of batch_size, whatever the number of workers",
    )
    draw: Draw = Field("step", description="how objectives are drawn from the mixture")
    sampling: Literal["mixture", "uniform"] | dict[str, float] = Field(
        "mixture",
        description="by what arms are drawn: the mixture's probabilities, all alike, or {NAME: weight} of arms, "
        "objectives, domains or tasks. Where it is not the mixture p but q, losses are multiplied by p / q: the "
        "mixture then says how much an arm's loss weighs, and not how often it comes",
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        "float32", description="of forward and backward passes, by autocast; weights and the optimiser are float32"
    )
    compile: bool = Field(False, description="torch.compile the model")
    compile_mode: CompileMode = Field(
        "default",
        description="torch.compile's: reduce-overhead replays passes as CUDA graphs, for models whose kernels are too "
        "short to keep a GPU busy; max-autotune tries out kernels too, which takes minutes",
    )
    fixed_shapes: bool | None = Field(
        None,
        description="predicted positions in a buffer of a fixed size, whose unused entries weigh nothing: a compiled "
        "model then keeps its shapes; null: where the model is compiled",
    )
    pad_vocabulary: bool | None = Field(
        None,
        description="the output layer computes a multiple of 64 logits, of which training sees the vocabulary's; "
        "nothing that is saved changes; null: on a GPU",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="how workers share a step: ddp, each with the whole model; fsdp, each with a part of every layer's "
        "weights, gradients and moments, for encoders beyond one GPU. What is saved is the same; no sample texts are",
    )
    compress_gradients: bool = Field(False, description="workers exchange gradients in bf16: half the bytes, rounded")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="a step whose loss or gradient is not finite ends the run, or is left out"
    )
    nonfinite_limit: int = Field(
        20, gt=0, description="steps in a row that may be left out; fp16 leaves out those that overflow whatever is set"
    )
    log_every: int = Field(10, gt=0, description="steps between lines of metrics.jsonl and of the terminal")
    evaluate_every: int = Field(0, ge=0, description="steps between held-out evaluations; 0: only before and after")
    evaluate_batches: int = Field(16, gt=0, description="batches of held-out blocks that an evaluation takes, an arm")
    checkpoint_every: int = Field(500, gt=0, description="steps; the meta-learner is waited for at others than its own")
    keep: int = Field(3, gt=0, description="checkpoints kept besides the best")

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> "TrainConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _sampling_is_of_draws(self) -> "TrainConfig":
        if self.sampling == "mixture":
            return self
        if self.draw == "weighted":
            raise ValueError(
                "train.draw=weighted trains every arm in every micro-batch, and train.sampling says how often arms are "
                "drawn: take draw=stratified or step, or leave sampling out"
            )
        shares = self.sampling.values() if isinstance(self.sampling, dict) else [1.0]
        if not shares or not all(0 < share < math.inf for share in shares):
            raise ValueError("sampling takes numbers above 0, such as {mlm: 3, sst2: 1}")
        return self

    @model_validator(mode="after")
    def _compile_mode_fits(self) -> "TrainConfig":
        if self.compile_mode != "default" and not self.compile:
            raise ValueError(
                f"compile_mode={self.compile_mode} is of a compiled model: set train.compile=true, or leave it out"
            )
        if self.records_graphs and self.fixed_shapes is False:
            raise ValueError(
                f"compile_mode={self.compile_mode} records CUDA graphs, one for each shape: leave fixed_shapes out"
            )
        return self

    def total_steps(self, block_size: int) -> int:
        """Steps of the run: `steps`, or as many as the token budget needs."""
        return self.steps if self.tokens is None else math.ceil(self.tokens / (self.batch_size * block_size))

    @property
    def keeps_shapes(self) -> bool:
        """Whether the micro-batches of an objective all have the same shapes."""
        return self.compile if self.fixed_shapes is None else self.fixed_shapes

    @property
    def records_graphs(self) -> bool:
        """Whether a GPU replays the passes as CUDA graphs."""
        return self.compile_mode in RECORDED

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a global step; every rank needs one."""
        return self.batch_size // self.micro_batch_size

    def largest_micro_batch(self, ranks: int) -> int | None:
        """The largest micro-batch size with one for each of so many ranks; None where the batch is too small."""
        sizes = [size for size in range(1, self.batch_size + 1) if self.batch_size % size == 0]
        return max((size for size in sizes if self.batch_size // size >= ranks), default=None)
