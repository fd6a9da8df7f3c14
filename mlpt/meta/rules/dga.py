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
SCALE_KEPT = 0.99  # share of the old mean square of alignments that an update keeps


class Dga(MixtureRule, LookaheadRule):
    """One step of exponentiated gradient at every look-ahead."""

    name = "dga"

    class Config(RuleConfig):
        """lr         the paper's eta.
        scale      `relative` (default): alignments, less their mean over arms, are divided by the root of their running
                   mean square, so that lr means the same at every scale of losses and gradients; `plain`: as they come.
        averaging  share of the old average that an update keeps of alignments, which are noisy; 0: each by itself.
        entropy    pull towards the uniform mixture, in steps of lr * entropy * dH/dlogits.
        floor      least probability of an arm.
        smoothing  share of the old mixture that an update keeps (the paper's moving average: .9).
        """

        rule: Literal["dga"] = "dga"
        lr: float = Field(default=0.2, gt=0, allow_inf_nan=False)
        scale: Literal["relative", "plain"] = "relative"
        averaging: float = Field(default=0.8, ge=0, lt=1)
        entropy: float = Field(default=0.0, ge=0, allow_inf_nan=False)
        floor: float = Field(default=0.02, ge=0, lt=1)
        smoothing: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        with_floor(self.first().values, config.floor)  # a floor that does not fit is refused now
        self._logits = [0.0] * len(arms)  # log alpha but for a constant
        self._mean = [0.0] * len(arms)  # of alignments, as yet biased to 0
        self._square = 0.0  # likewise, of their squares over all arms
        self._updates = 0

    def share(self, part: Part, context: MetaContext) -> "_Weights":
        device = next(context.model.parameters()).device
        weights = torch.tensor([part.values[arm] for arm in self.arms], device=device, requires_grad=True)
        return _Weights(self.arms, weights)

    def descend(self, part: Part, gradients: Mapping[str, Tensor], context: MetaContext) -> Part:
        alignments = (-gradients[WEIGHTS].double().cpu()).tolist()
        context.report["alignment"] = dict(zip(self.arms, alignments, strict=True))
        middle = math.fsum(alignments) / len(alignments)  # the same for all arms: it moves no probability
        centred = [one - middle for one in alignments]
        keep, self._updates = self.config.averaging, self._updates + 1
        self._mean = [keep * old + (1 - keep) * new for old, new in zip(self._mean, centred, strict=True)]
        square = math.fsum(one * one for one in centred) / len(centred)
        self._square = SCALE_KEPT * self._square + (1 - SCALE_KEPT) * square
        step = self.config.lr / (1 - keep**self._updates)
        if self.config.scale == "relative":
            step /= math.sqrt(self._square / (1 - SCALE_KEPT**self._updates)) or math.inf
        pull = entropy_gradient(softmax(self._logits))
        self._logits = [
            logit + step * mean + self.config.lr * self.config.entropy * flatter
            for logit, mean, flatter in zip(self._logits, self._mean, pull, strict=True)
        ]
        wanted = with_floor(dict(zip(self.arms, softmax(self._logits), strict=True)), self.config.floor)
        keep = self.config.smoothing
        return self.becomes([keep * part.values[arm] + (1 - keep) * wanted[arm] for arm in self.arms], context)

    def state(self) -> State:
        return State(
            {"logits": self._logits, "mean": self._mean, "square": self._square, "updates": self._updates}
        )

    def load_state(self, state: State) -> None:
        values = state.values
        self._logits, self._mean = list(values["logits"]), list(values["mean"])
        self._square, self._updates = values["square"], values["updates"]


class _Weights(Share):
    """The arms' weights themselves."""

    def __init__(self, arms: Sequence[str], weights: Tensor):
        super().__init__({WEIGHTS: weights})
        self._arms = arms

    def weights(self, outer: Outer) -> dict[str, Any]:
        return dict(zip(self._arms, outer[WEIGHTS], strict=True))
