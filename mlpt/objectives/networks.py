"""Sizes of the small transformers of MetaLMO (Shen, 2021): its student, and teachers that make batches."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mlpt.settings import Settings


class NetworkConfig(Settings):
    """Sizes of a teacher or a student; the defaults are those of the published runs on text."""

    hidden_size: int = Field(default=256, gt=0, description="width of every layer")
    layers: int = Field(default=6, gt=0, description="number of layers")
    heads: int = Field(default=4, gt=0, description="attention heads of a layer")
    intermediate_size: int = Field(default=1024, gt=0, description="width of the feed-forward layers")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="of embeddings and of each layer's two branches")
    attention_dropout: float = Field(default=0.1, ge=0, lt=1, description="of attention's weights")
    activation_dropout: float = Field(default=0.0, ge=0, lt=1, description="inside the feed-forward layers")
    activation: Literal["gelu", "relu"] = Field(default="gelu", description="of the feed-forward layers")
    norm: Literal["pre", "post"] = Field(
        default="pre", description="where each branch is normalised; every reported run uses 'pre'"
    )
    positions: int = Field(default=128, gt=0, description="longest sequence, in tokens")
    attention: Literal["sdpa", "eager"] = Field(
        default="sdpa",
        description="fast kernels; or plain products, which small networks in great number run faster on",
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}; change one")
        return self
