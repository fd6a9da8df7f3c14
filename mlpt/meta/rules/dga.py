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
from pydantic import Field, model_validator
from torch import Tensor

from mlpt.meta.context import MetaContext
from mlpt.meta.engines.base import Outer
from mlpt.meta.policy import Part
from mlpt.meta.rules.base import LookaheadRule, RuleConfig, Share, entropy_gradient, softmax
from mlpt.meta.rules.factors import FactorList, Factors
from mlpt.meta.rules.mixture import MixtureRule
from mlpt.storage.state import State

WEIGHTS = "mixture.weights"


class Dga(MixtureRule, LookaheadRule):
    """One step of exponentiated gradient at every look-ahead."""

    name = "dga"
    usual_floor = 0.02

    class Config(RuleConfig):
        """lr         the paper's eta.
        scale      `relative` (default): alignments, less their mean over arms, are divided by their root mean square,
                   so that every update counts alike (in early training they are twenty times as large as later);
                   `plain`: as they come.
        averaging  share of the old average of alignments that an update keeps: a step goes along the average. 0: each
                   alignment by itself.
        doubt      steps shrink by max(0, 1 - (doubt se / a_i)^2), with se the standard error of an averaged alignment
                   a_i by how much those of single updates differ: what noise alone could be moves nothing, and what
                   is not noise moves later. 2 asks for about two standard errors; 0: no shrinking.
        entropy    pull towards the uniform mixture, in steps of lr * entropy * dH/dlogits.
        floor      least probability of an arm; null: .02, or half an equal share where that is less.
        smoothing  share of the old mixture that an update keeps (the paper's moving average: .9).
        factor     [objective, domain]: a logit for each objective and each domain, added up; a level's alignment is the
                   mean of its arms', by their probabilities. By default one for each arm.
        """

        rule: Literal["dga"] = "dga"
        lr: float = Field(default=0.4, gt=0, allow_inf_nan=False)
        scale: Literal["relative", "plain"] = "relative"
        averaging: float = Field(default=0.0, ge=0, lt=1)
        doubt: float = Field(default=0.0, ge=0, allow_inf_nan=False)
        entropy: float = Field(default=0.0, ge=0, allow_inf_nan=False)
        floor: float | None = Field(default=None, ge=0, lt=1)
        smoothing: float = Field(default=0.0, ge=0, lt=1)
        factor: FactorList = Field(default_factory=list)

        @model_validator(mode="after")
        def _judged_by_several(self) -> "Dga.Config":
            if self.doubt and not self.averaging:
                raise ValueError("doubt judges an average by several updates: set averaging above 0, or doubt=0")
            return self

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._factors = Factors(arms, config.factor)
        size = self._factors.size
        self._logits = [0.0] * size  # log alpha but for a constant
        self._mean = [0.0] * size  # running averages of alignments and of their squares, as yet biased to 0
        self._square = [0.0] * size
        self._updates = 0

    @property
    def _memory(self) -> float:
        """What the weights of the running averages sum to by now."""
        return 1 - self.config.averaging**self._updates

    def share(self, part: Part, context: MetaContext) -> "Weights":
        return Weights.of(self.arms, part, context)

    def descend(self, part: Part, gradients: Mapping[str, Tensor], context: MetaContext) -> Part:
        alignments = (-gradients[WEIGHTS].double().cpu()).tolist()
        context.report["alignment"] = dict(zip(self.arms, alignments, strict=True))
        if self.config.factor:
            alignments = self._factors.averaged(alignments, self._probabilities())
        if self.config.scale == "relative":
            alignments = self._factors.in_each(alignments, relative)
        self._average(alignments)
        means = [mean / self._memory for mean in self._mean]
        least = self.config.doubt * self._standard_error(means) if self.config.doubt else 0.0
        pull = self._factors.summed(entropy_gradient(self._probabilities()))
        self._logits = [
            logit + self.config.lr * (shrunk(mean, least) + self.config.entropy * flatter)
            for logit, mean, flatter in zip(self._logits, means, pull, strict=True)
        ]
        return self.guarded(part, self._probabilities(), context, self.config.smoothing)

    def _probabilities(self) -> list[float]:
        return softmax(self._factors.of_arms(torch.tensor(self._logits, dtype=torch.float64)).tolist())

    def _average(self, alignments: Sequence[float]) -> None:
        keep, self._updates = self.config.averaging, self._updates + 1
        self._mean = [keep * old + (1 - keep) * new for old, new in zip(self._mean, alignments, strict=True)]
        self._square = [keep * old + (1 - keep) * new**2 for old, new in zip(self._square, alignments, strict=True)]

    def _standard_error(self, means: Sequence[float]) -> float:
        """Of an averaged alignment: the spread of single ones about their averages, pooled over arms, times the root of
        what the squares of the averages' weights sum to. Infinite after one update without a spread to judge by."""
        if self._updates < 2:
            return math.inf
        keep = self.config.averaging
        squares = (1 - keep) / (1 + keep) * (1 - keep ** (2 * self._updates)) / self._memory**2
        spread = math.fsum(one / self._memory - mean**2 for one, mean in zip(self._square, means, strict=True))
        return math.sqrt(max(0.0, spread) / len(means) * squares / (1 - squares))

    def state(self) -> State:
        return State({"logits": self._logits, "mean": self._mean, "square": self._square, "updates": self._updates})

    def load_state(self, state: State) -> None:
        values = state.values
        self._logits, self._mean = list(values["logits"]), list(values["mean"])
        self._square, self._updates = list(values["square"]), values["updates"]


def shrunk(mean: float, least: float) -> float:
    """mean * max(0, 1 - (least / mean)^2), as the positive part of James and Stein's estimator."""
    return 0.0 if abs(mean) <= least else mean * (1 - (least / mean) ** 2)


def relative(alignments: Sequence[float]) -> list[float]:
    """Less their mean, which moves no probability, and divided by their root mean square; zeros where all are equal."""
    middle = math.fsum(alignments) / len(alignments)
    centred = [one - middle for one in alignments]
    scale = math.sqrt(math.fsum(one * one for one in centred) / len(centred))
    return [one / scale if scale > 0 else 0.0 for one in centred]


class Weights(Share):
    """The arms' weights themselves."""

    def __init__(self, arms: Sequence[str], weights: Tensor, by_parameter: bool = False):
        super().__init__({WEIGHTS: weights}, by_parameter)
        self._arms = arms

    @classmethod
    def of(cls, arms: Sequence[str], part: Part, context: MetaContext, by_parameter: bool = False) -> "Weights":
        """Those of a mixture, on the model's device."""
        device = next(context.model.parameters()).device
        weights = torch.tensor([part.values[arm] for arm in arms], device=device, requires_grad=True)
        return cls(arms, weights, by_parameter)

    def weights(self, outer: Outer) -> dict[str, Any]:
        return dict(zip(self._arms, outer[WEIGHTS], strict=True))
