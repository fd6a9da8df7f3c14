"""Settings of multi-task fine-tuning, and the one switch that turns every quirk of CA-MTL's published code back on."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mlpt.downstream.config import DownstreamConfig
from mlpt.downstream.multitask.model import LabelDtype
from mlpt.downstream.multitask.scoring import ScoringConfig
from mlpt.downstream.samplers import MtUncertainty, PolicySampler, SamplerConfig
from mlpt.meta.joint_lookahead import check_parts
from mlpt.meta.policy import MIXTURE
from mlpt.meta.rules import rule_class
from mlpt.models.conditional.encoder import ConditionalConfig
from mlpt.models.conditional.freezing import Modulation
from mlpt.training.optimizer import check_look_ahead

# What `published: true` sets where the configuration says nothing else: component -> its quirks.
PUBLISHED: dict[str, Any] = {
    "conditional": {"norm": "scale", "last_layer": "random"},  # CA-6, CA-4
    "sampler": {"rule": "proportional"},  # CA-2: what runs without the uncertainty flag
    "scoring": {"precision": "float32", "dropout": "as_trained", "max_tokens": 10**9},  # CA-12
    "freeze": "none",
    "modulation": "frozen",  # CA-3
    "label_dtype": "first_row",  # CA-1
    "batch_size": 8,
    "precision": "float32",
    # AdamW of transformers 2.11, with the code's own rate; the README's command says 2e-5.
    "optimizer": {"kind": "transformers_adamw", "lr": 5e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
}
_PUBLISHED_UNCERTAINTY = {"score": "code", "regression": "zero"}  # CA-5


class MultitaskConfig(DownstreamConfig):
    """One multi-task fine-tuning: one encoder, a decoder for each task.

    `published: true` fills in what the published code does wherever nothing else is said; the settings that are
    written down are the resolved ones. Without it the sampler and the freezing that the authors call required (CA-13)
    are the default.
    """

    out: str = Field("multitask", description="folder or URI of the results")
    seed: int = Field(42, description="of decoders, draws of rows and dropout")
    published: bool = Field(False, description="default to the published code's quirks")
    encoder: Literal["conditional", "shared"] = Field(
        "conditional", description="CA-MTL's, or the stock encoder as the multi-task baseline"
    )
    conditional: ConditionalConfig = Field(ConditionalConfig(), description="its max_length bounds rows of any encoder")
    sampler: SamplerConfig = Field(default_factory=MtUncertainty.Config)
    scoring: ScoringConfig = ScoringConfig()
    freeze: str = Field("lower_half", description="encoder layers: lower_half (conditional encoders), none, or a-b")
    modulation: Modulation = Field("trainable", description="attention's modulation in frozen layers")
    label_dtype: LabelDtype = Field("task", description="first_row: STS-B's decimals may be cut off, as published")
    epochs: float = Field(3.0, gt=0, description="of the sampler's own epochs")
    feature_cache: str | None = Field(None, description="folder of tokenised splits; null: tokenise at every start")
    meta_dev_rows: int = Field(
        64, gt=0, description="rows of each training split kept for a policy's rule, a fifth at most"
    )
    export: bool = Field(True, description="shared encoder: also one stock classifier folder a task")

    @model_validator(mode="before")
    @classmethod
    def _published_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("published"):
            return values
        quirks = dict(PUBLISHED)
        given = values.get("sampler")
        if (given.get("rule") if isinstance(given, dict) else getattr(given, "rule", None)) == "mt_uncertainty":
            quirks["sampler"] = _PUBLISHED_UNCERTAINTY
            quirks["label_dtype"] = "task"  # this mode joins the labels with type promotion
        elif given is not None:
            quirks["sampler"] = {}
        filled = dict(values)
        for name, quirk in quirks.items():
            if filled.get(name) is None:
                filled[name] = quirk
            elif isinstance(quirk, dict) and isinstance(filled[name], dict):
                filled[name] = quirk | filled[name]
        return filled

    @model_validator(mode="after")
    def _can_be_learned(self) -> "MultitaskConfig":
        if not isinstance(self.sampler, PolicySampler.Config):
            return self
        rule = rule_class(MIXTURE, self.sampler.learner.rule)
        if rule.needs_moments:
            check_look_ahead(f"rule '{rule.name}'", self.optimizer, "optimizer")
        check_parts(rule, self.sampler.lookahead, "sampler.lookahead")
        return self
