"""What `mlpt question` is asked."""

from typing import Any, Literal

from pydantic import Field, field_validator

from mlpt.questioning.metrics import THRESHOLDS, Metric
from mlpt.settings import Settings
from mlpt.sparsity.artefacts import masks_beside


class QuestionConfig(Settings):
    """Which model answers about which tokens, and how.

    model         a run, a folder or a hub name of a masked language model.
    blocks        a prepared folder or URI.
    dense         leave the masks beside the model's weights aside.
    out           folder or URI of the scores.
    split         of the blocks; training masks the train split by them.
    metrics       one score a token and 2 bytes each; they share their passes. The first is what readers get by default.
    stride        passes of `pseudo_loss`: pass j masks every stride-th position from j on, so that each is masked once
                  and 1/stride of the text at a time. Default 7: as much as training masks. A row's length or more
                  masks one position at a time (the pseudo-log-likelihood proper).
    seed          of `random`.
    precision     of the model's matrix products; probabilities are float32 in either case. bf16 logits have 8 bits: a
                  loss of 0.1 nats moves by up to 1 % where logits are about 3, by up to 3 % where they are about 10.
    batch_tokens  tokens in one forward pass, padding included; null: 4,096 on CPUs, 65,536 on GPUs. It bounds memory
                  and changes no score beyond rounding.
    """

    model: str
    dense: bool = False
    blocks: str
    out: str
    split: Literal["train", "dev", "test"] = "train"
    metrics: tuple[Metric, ...] = Field(default=("loss",), min_length=1)
    stride: int = Field(default=7, ge=2)
    seed: int = 0
    precision: Literal["float32", "bf16"] = "float32"
    batch_tokens: int | None = Field(default=None, gt=0)

    @field_validator("metrics", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """`loss,entropy` is short for a list."""
        return value.split(",") if isinstance(value, str) else value

    @field_validator("metrics")
    @classmethod
    def _once_each(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        if len(set(metrics)) < len(metrics):
            raise ValueError("a metric is named twice")
        return metrics

    @property
    def masks(self) -> str | None:
        """Where the masks lie under which the model answers; None: it answers dense."""
        return None if self.dense else masks_beside(self.model)

    def decisive(self) -> dict[str, Any]:
        """The settings that the scores of the chosen metrics depend on, besides model and blocks."""
        chosen: dict[str, Any] = {"precision": self.precision}
        if "pseudo_loss" in self.metrics:
            chosen["stride"] = self.stride
        if "random" in self.metrics:
            chosen["seed"] = self.seed
        return chosen

    def thresholds(self) -> dict[str, float]:
        """Of each metric, in their order."""
        return {metric: THRESHOLDS[metric] for metric in self.metrics}
