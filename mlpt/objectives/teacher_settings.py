"""Settings of batches that a teacher makes."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mlpt.objectives.mlm import MaskingConfig
from mlpt.objectives.networks import NetworkConfig
from mlpt.settings import Settings


class MaskerConfig(MaskingConfig):
    """Of `teacher: masker`: what becomes of the positions that it chooses is as in masked language modelling."""

    budget: float = Field(default=0.15, gt=0, le=1, description="share of a row's tokens that is chosen")
    network: bool = Field(
        default=False, description="score positions by a network that reads the text, beside the table of token types"
    )


class TeacherMadeConfig(Settings):
    """Who makes the batches, and how."""

    teacher: Literal["pairs", "inputs", "masker"] = Field(
        default="pairs",
        description="what it writes: inputs and targets (MetaLMO); inputs alone, the target is the text (a learned "
        "denoising); or which positions are masked",
    )
    samples: Literal["hard", "soft"] = Field(
        default="hard", description="tokens, or distributions over tokens, on which MetaLMO's soft student trains"
    )
    network: NetworkConfig = Field(
        default_factory=NetworkConfig, description="the teacher's sizes; a masker's only with masking.network"
    )
    masking: MaskerConfig = Field(default_factory=MaskerConfig)
    may_write_padding: bool = Field(
        default=False, description="published: padding may be written inside a text, and its target is dropped"
    )
    seed: int = Field(default=0, description="of the teacher's starting weights")

    @model_validator(mode="after")
    def _masks_are_hard(self) -> Self:
        if self.teacher == "masker" and self.samples == "soft":
            raise ValueError("a masker makes no soft samples: leave samples out")
        return self
