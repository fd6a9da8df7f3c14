"""Rule `dga_shrunk`: gradient alignment as in `dga`, of which only counts what is told from noise, tensor by tensor.

The alignment of arm i with the target, a_i = -d L_target / d w_i after one look-ahead, is a sum over the model's
parameter tensors, a_i = sum_p a_pi, and most of its noise comes from few of them: AdamW divides gradients by the root
of their second moment, and where that is small (queries and keys, early in training) it magnifies noise. And it is the
larger the fewer rows an arm has: with gradients from training its variance goes as 1 / alpha_i. So each tensor's shares
are taken in units of the arm's own noise and against the mixture's mean,

    b_pi = sqrt(alpha_i) (a_pi - sum_j alpha_j a_pj),

averaged over updates, m_pi, and shrunk by the factor of the positive-part James-Stein estimator, se_p the standard
error of the averages:

    v_i = sum_p s_p m_pi / T,   s_p = max(0, 1 - (doubt se_p)^2 / mean_i m_pi^2),

T the running root mean square over arms of what single updates say in all. Then, as in Fan, Grangier and Ablin (2024,
arXiv 2410.02498), alpha_i <- alpha_i exp(lr v_i) / sum_j alpha_j exp(lr v_j). Where nothing is told from noise nothing
moves.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlpt.meta.context import MetaContext
from mlpt.meta.engines.base import by_parameter_of
from mlpt.meta.policy import Part
from mlpt.meta.rules.base import LookaheadRule, RuleConfig, entropy_gradient, softmax
from mlpt.meta.rules.dga import WEIGHTS, Weights
from mlpt.meta.rules.mixture import MixtureRule
from mlpt.storage.state import State


class DgaShrunk(MixtureRule, LookaheadRule):
    """One step of exponentiated gradient at every look-ahead after the first."""

    name = "dga_shrunk"

    class Config(RuleConfig):
        """lr         of a step; without noise the v_i have a root mean square of 1 over arms.
        averaging  share of the old averages that an update keeps: .8 looks back on about five updates.
        doubt      how many standard errors a tensor's averages must exceed to be heard; 0: all are.
        entropy    pull towards the uniform mixture, in steps of lr * entropy * dH/dlogits.
        floor      least probability of an arm.
        smoothing  share of the old mixture that an update keeps.
        """

        rule: Literal["dga_shrunk"] = "dga_shrunk"
        lr: float = Field(default=0.7, gt=0, allow_inf_nan=False)
        averaging: float = Field(default=0.8, gt=0, lt=1)
        doubt: float = Field(default=1.5, ge=0, allow_inf_nan=False)
        entropy: float = Field(default=0.3, ge=0, allow_inf_nan=False)
        floor: float = Field(default=0.02, ge=0, lt=1)
        smoothing: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._logits = [0.0] * len(arms)  # log alpha but for a constant
        self._averages: dict[str, Tensor] = {}  # running averages, as yet biased to 0
        self._updates = 0

    @classmethod
    def refuses(cls, settings: Any, config: Any) -> str | None:
        lookahead = config.meta.lookahead
        if lookahead.takes_apart:
            return None
        return (
            f"rule '{cls.name}' takes alignments apart by parameter, which engine {lookahead.engine} cannot for "
            f"inner_steps={lookahead.inner_steps}: set meta.lookahead.engine=one_step, or alignment, and inner_steps=1"
        )

    def share(self, part: Part, context: MetaContext) -> Weights:
        return Weights.of(self.arms, part, context, by_parameter=True)

    def descend(self, part: Part, gradients: Mapping[str, Tensor], context: MetaContext) -> Part:
        context.report["alignment"] = dict(zip(self.arms, (-gradients[WEIGHTS]).tolist(), strict=True))
        parts = gradients.get(by_parameter_of(WEIGHTS), gradients[WEIGHTS][None])  # beside rules of masks `auto` cannot
        along, heard = self._shrunk(-parts.double().cpu())
        pull = entropy_gradient(softmax(self._logits))
        self._logits = [
            logit + self.config.lr * (one + self.config.entropy * flatter)
            for logit, one, flatter in zip(self._logits, along, pull, strict=True)
        ]
        context.report["heard"] = heard
        return self.guarded(part, softmax(self._logits), context, self.config.smoothing)

    def _shrunk(self, shares: Tensor) -> tuple[list[float], float]:
        """Of `shares` (parameters, arms): v_i, zeros after a first update, which says nothing of noise; and the mean of
        the factors s_p."""
        mixture = torch.tensor(softmax(self._logits), dtype=torch.float64)
        shares = mixture.sqrt() * (shares - (shares @ mixture)[:, None])
        new = {"mean": shares, "square": shares.square().mean(1), "whole": shares.sum(0).square().mean()}
        keep = self.config.averaging
        old = self._averages or {name: torch.zeros_like(one) for name, one in new.items()}
        self._averages = {name: keep * old[name] + (1 - keep) * one for name, one in new.items()}
        self._updates += 1
        memory = 1 - keep**self._updates  # what the weights of the averages sum to by now
        mean, square, whole = (one / memory for one in self._averages.values())
        if self._updates < 2 or whole == 0:
            return [0.0] * len(self.arms), 0.0
        size = mean.square().mean(1)
        # From the spread of single updates about their average to its variance: by the sum of its weights' squares.
        weights = (1 - keep) / (1 + keep) * (1 - keep ** (2 * self._updates)) / memory**2
        noise = (square - size).clamp(min=0) * weights / (1 - weights)
        told = torch.where(size > 0, 1 - self.config.doubt**2 * noise / size, 0).clamp(min=0)
        return ((told[:, None] * mean).sum(0) / whole.sqrt()).tolist(), float(told.mean())

    def state(self) -> State:
        return State({"logits": self._logits, "updates": self._updates}, self._averages)

    def load_state(self, state: State) -> None:
        self._logits, self._updates = list(state.values["logits"]), state.values["updates"]
        self._averages = {name: state.tensors[name] for name in ("mean", "square", "whole") if name in state.tensors}
