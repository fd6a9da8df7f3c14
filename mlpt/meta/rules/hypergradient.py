"""Rule `hypergradient`: the mixture goes where a look-ahead of real optimiser steps says held-out losses fall.

Outer variables are the mixture's logits; an inner step minimises sum_i p_i L_i. (One-step case: DoGE, Fan et al. 2023,
and AC-ODM use its gradient alignment as a reward; here it is the gradient itself, through AdamW.)
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlpt.meta.context import MetaContext
from mlpt.meta.engines.base import Outer
from mlpt.meta.outer_optimizer import OuterOptimizer
from mlpt.meta.policy import Part
from mlpt.meta.rules.base import LookaheadRule, RuleConfig, Share, entropy_gradient, softmax
from mlpt.meta.rules.factors import FactorList, Factors
from mlpt.meta.rules.mixture import MixtureRule
from mlpt.storage.state import State

LOGITS = "mixture.logits"
BETAS = (0.9, 0.99)  # of the outer Adam


class Hypergradient(MixtureRule, LookaheadRule):
    """One outer step on the logits at every look-ahead."""

    name = "hypergradient"
    usual_floor = 0.02

    class Config(RuleConfig):
        """optimizer, lr  the outer optimiser of the logits; `adam` takes steps of about lr whatever the scale of the
                       hypergradient, `sgd` follows it.
        entropy        pull towards the uniform mixture, in steps of lr * entropy * dH/dlogits, decoupled from the
                       hypergradient as AdamW's decay is.
        floor          least probability of an arm; null: .02, or half an equal share where that is less.
        smoothing      share of the old mixture that an update keeps.
        factor         [objective, domain]: a logit for each objective and each domain, added up; by default one for
                       each arm.
        """

        rule: Literal["hypergradient"] = "hypergradient"
        optimizer: Literal["adam", "sgd"] = "adam"
        lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)
        entropy: float = Field(default=0.1, ge=0, allow_inf_nan=False)
        floor: float | None = Field(default=None, ge=0, lt=1)
        smoothing: float = Field(default=0.5, ge=0, lt=1)
        factor: FactorList = Field(default_factory=list)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._factors = Factors(arms, config.factor)
        self._logits = [0.0] * self._factors.size
        self._outer = OuterOptimizer(config.optimizer, config.lr, BETAS)

    def share(self, part: Part, context: MetaContext) -> "_Weights":
        device = next(context.model.parameters()).device
        logits = torch.tensor(self._logits, device=device, requires_grad=True)
        return _Weights(self.arms, logits, self._factors, self.floor)

    def descend(self, part: Part, gradients: Mapping[str, Tensor], context: MetaContext) -> Part:
        gradient = gradients[LOGITS].double().cpu()
        context.report["hypergradient"] = dict(zip(self._factors.names, gradient.tolist(), strict=True))
        pull = torch.tensor(self._factors.summed(entropy_gradient(self._probabilities())), dtype=torch.float64)
        logits = {LOGITS: torch.tensor(self._logits, dtype=torch.float64)}
        moved, state = self._outer.step(logits, {LOGITS: gradient})
        self._outer.load_state(state)
        self._logits = (moved[LOGITS] + self.config.lr * self.config.entropy * pull).tolist()
        return self.guarded(part, self._probabilities(), context, self.config.smoothing)

    def _probabilities(self) -> list[float]:
        return softmax(self._factors.of_arms(torch.tensor(self._logits, dtype=torch.float64)).tolist())

    def state(self) -> State:
        outer = self._outer.state()
        return State({"logits": self._logits, "outer": dict(outer.values)}, outer.tensors)

    def load_state(self, state: State) -> None:
        self._logits = list(state.values["logits"])
        self._outer.load_state(State(state.values["outer"], state.tensors))


class _Weights(Share):
    """The arms' weights as the floored softmax of their logits."""

    def __init__(self, arms: Sequence[str], logits: Tensor, factors: Factors, floor: float):
        super().__init__({LOGITS: logits})
        self._arms, self._factors, self._floor = arms, factors, floor

    def weights(self, outer: Outer) -> dict[str, Any]:
        mixture = self._floor + (1 - len(self._arms) * self._floor) * self._factors.of_arms(outer[LOGITS]).softmax(0)
        return dict(zip(self._arms, mixture, strict=True))
