"""Rule `dga`: more of the arms whose gradients point where the target's does, as in Dynamic Gradient Alignment (Fan,
Grangier and Ablin 2024, arXiv 2410.02498): alpha_i <- alpha_i exp(eta a_i) / sum_j alpha_j exp(eta a_j).

The paper's alignment is a_i = <g_i, g_target>. Here it is taken through the optimiser that trains:
a_i = -d L_target / d w_i after one look-ahead with the loss sum_i w_i L_i, which for plain SGD is lr <g_i, g_target>.
Unlike `hypergradient`, which descends in logits, a step does not shrink with an arm's own probability.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlpt.meta.context import MetaContext
from mlpt.meta.engines.base import Outer
from mlpt.meta.policy import Part
from mlpt.meta.rules.base import LookaheadRule, RuleConfig, Share, entropy_gradient, softmax
from mlpt.meta.rules.mixture import MixtureRule, with_floor
from mlpt.storage.state import State

WEIGHTS = "mixture.weights"


class Dga(MixtureRule, LookaheadRule):
    """One step of exponentiated gradient at every look-ahead."""

    name = "dga"

    class Config(RuleConfig):
        """lr         the paper's eta.
        scale      `relative` (default): alignments, less their mean over arms, are divided by their root mean square,
                   so that every update counts alike (in early training they are twenty times as large as later);
                   `plain`: as they come.
        entropy    pull towards the uniform mixture, in steps of lr * entropy * dH/dlogits.
        floor      least probability of an arm.
        smoothing  share of the old mixture that an update keeps (the paper's moving average: .9).
        """

        rule: Literal["dga"] = "dga"
        lr: float = Field(default=0.2, gt=0, allow_inf_nan=False)
        scale: Literal["relative", "plain"] = "relative"
        entropy: float = Field(default=0.0, ge=0, allow_inf_nan=False)
        floor: float = Field(default=0.02, ge=0, lt=1)
        smoothing: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        with_floor(self.first().values, config.floor)  # a floor that does not fit is refused now
        self._logits = [0.0] * len(arms)  # log alpha but for a constant

    def share(self, part: Part, context: MetaContext) -> "_Weights":
        device = next(context.model.parameters()).device
        weights = torch.tensor([part.values[arm] for arm in self.arms], device=device, requires_grad=True)
        return _Weights(self.arms, weights)

    def descend(self, part: Part, gradients: Mapping[str, Tensor], context: MetaContext) -> Part:
        alignments = (-gradients[WEIGHTS].double().cpu()).tolist()
        context.report["alignment"] = dict(zip(self.arms, alignments, strict=True))
        if self.config.scale == "relative":
            alignments = relative(alignments)
        pull = entropy_gradient(softmax(self._logits))
        self._logits = [
            logit + self.config.lr * (alignment + self.config.entropy * flatter)
            for logit, alignment, flatter in zip(self._logits, alignments, pull, strict=True)
        ]
        wanted = with_floor(dict(zip(self.arms, softmax(self._logits), strict=True)), self.config.floor)
        keep = self.config.smoothing
        return self.becomes([keep * part.values[arm] + (1 - keep) * wanted[arm] for arm in self.arms], context)

    def state(self) -> State:
        return State({"logits": self._logits})

    def load_state(self, state: State) -> None:
        self._logits = list(state.values["logits"])


def relative(alignments: Sequence[float]) -> list[float]:
    """Less their mean, which moves no probability, and divided by their root mean square; zeros where all are equal."""
    middle = math.fsum(alignments) / len(alignments)
    centred = [one - middle for one in alignments]
    scale = math.sqrt(math.fsum(one * one for one in centred) / len(centred))
    return [one / scale if scale > 0 else 0.0 for one in centred]


class _Weights(Share):
    """The arms' weights themselves."""

    def __init__(self, arms: Sequence[str], weights: Tensor):
        super().__init__({WEIGHTS: weights})
        self._arms = arms

    def weights(self, outer: Outer) -> dict[str, Any]:
        return dict(zip(self._arms, outer[WEIGHTS], strict=True))
