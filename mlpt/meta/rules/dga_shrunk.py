"""Rule `dga_shrunk`: gradient alignment as in `dga`, of which only counts what is told from noise, tensor by tensor.

The alignment of arm i with the target, a_i = -d L_target / d w_i after one look-ahead, is a sum over the model's
parameter tensors, a_i = sum_p a_pi, and most of its noise comes from few of them: AdamW divides gradients by the root
of their second moment, and where that is small (queries and keys, early in training) it magnifies noise. And it is the
larger the fewer rows an arm has: with gradients from training its variance goes as 1 / alpha_i. So each tensor's shares
are taken in units of the arm's own noise and against the mixture's mean,

    b_pi = sqrt(alpha_i) (a_pi - sum_j alpha_j a_pj),

averaged over updates, m_pi, and shrunk by how well the averages foretold: s_p is the least-squares factor with which
each update's b_p follows from the average before it, which it had no part in, with evidence z of all tensors together:

    N_p = sum_t <m_p(t-1), b_p(t)>,   V_p = sum_t <m_p(t-1), b_p(t)>^2,   D_p = sum_t |m_p(t-1)|^2,
    s_p = (N_p - doubt sqrt(V_p)) / D_p within [0, 1],
    z = sum_t sum_p <m_p(t-1), b_p(t)> / sqrt(sum_t (sum_p <m_p(t-1), b_p(t)>)^2),
    v_i = sum_p s_p m_pi / T,

old updates counting for less in each sum, and all in units of T, the running root mean square over arms of what single
updates say in all. Noise is as often against what was averaged as along with it, so that N_p and z stay near 0 where
there is nothing else. Then, as in Fan, Grangier and Ablin (2024, arXiv 2410.02498), with a pull towards equal parts
(H the mixture's entropy) that lets go as evidence grows,

    log alpha_i <- log alpha_i + lr (v_i + entropy / max(1, z) dH / dlog alpha_i) + constant.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

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
    """One step of exponentiated gradient at every look-ahead after the second."""

    name = "dga_shrunk"
    needs_parts = True
    usual_floor = 0.01

    class Config(RuleConfig):
        """lr         of a step; without noise the v_i have a root mean square of 1 over arms.
        averaging  share of the old averages that an update keeps: .8 looks back on about five updates.
        memory     share of the old evidence that an update keeps: .98 looks back on about fifty updates.
        doubt      by how many standard errors averages must have foretold what came to be heard; 0: none.
        entropy    pull towards the uniform mixture, in steps of lr * entropy * dH/dlogits; the less, the more evidence
                   there is that alignments are no noise.
        floor      least probability of an arm; null: .01, or half an equal share where that is less.
        smoothing  share of the old mixture that an update keeps.
        """

        rule: Literal["dga_shrunk"] = "dga_shrunk"
        lr: float = Field(default=1.5, gt=0, allow_inf_nan=False)
        averaging: float = Field(default=0.8, gt=0, lt=1)
        memory: float = Field(default=0.98, gt=0, lt=1)
        doubt: float = Field(default=1.0, ge=0, allow_inf_nan=False)
        entropy: float = Field(default=0.5, ge=0, allow_inf_nan=False)
        floor: float | None = Field(default=None, ge=0, lt=1)
        smoothing: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._logits = [0.0] * len(arms)  # log alpha but for a constant
        self._sums: dict[str, Tensor] = {}  # over updates, old ones counting for less
        self._updates = 0

    def share(self, part: Part, context: MetaContext) -> Weights:
        return Weights.of(self.arms, part, context, by_parameter=True)

    def descend(self, part: Part, gradients: Mapping[str, Tensor], context: MetaContext) -> Part:
        context.report["alignment"] = dict(zip(self.arms, (-gradients[WEIGHTS]).tolist(), strict=True))
        parts = gradients.get(by_parameter_of(WEIGHTS), gradients[WEIGHTS][None])  # beside rules of masks `auto` cannot
        mixture = torch.tensor([part.values[arm] for arm in self.arms], dtype=torch.float64)
        shares = -parts.double().cpu()
        self._hear(mixture.sqrt() * (shares - (shares @ mixture)[:, None]))
        along, heard, evidence = self._shrunk()
        entropy = self.config.entropy / max(1.0, evidence)
        pull = entropy_gradient(softmax(self._logits))
        self._logits = [
            logit + self.config.lr * (one + entropy * flatter)
            for logit, one, flatter in zip(self._logits, along, pull, strict=True)
        ]
        context.report.update(heard=heard, evidence=evidence)
        return self.guarded(part, softmax(self._logits), context, self.config.smoothing)

    def _hear(self, shares: Tensor) -> None:
        """Take in b (parameters, arms) of one update: first as what the averages should have foretold."""
        memory = self.config.memory
        if self._updates:
            mean, scale = self._means()
            foretold = (mean * shares).sum(1) / scale**2
            self._add("foretold", foretold, memory)
            self._add("foretold_squares", foretold.square(), memory**2)
            self._add("sizes", mean.square().sum(1) / scale**2, memory)
            self._add("foretold_in_all_squares", foretold.sum().square(), memory**2)
        self._add("shares", shares, self.config.averaging)
        self._add("squares_in_all", shares.sum(0).square().mean(), self.config.averaging)
        self._updates += 1

    def _add(self, name: str, one: Tensor, keep: float) -> None:
        self._sums[name] = keep * self._sums[name] + one if name in self._sums else one

    def _means(self) -> tuple[Tensor, Tensor]:
        """m (parameters, arms), and T; 1 where no update said anything."""
        keep = self.config.averaging
        weights = (1 - keep**self._updates) / (1 - keep)
        square = self._sums["squares_in_all"] / weights
        return self._sums["shares"] / weights, torch.where(square > 0, square.sqrt(), 1.0)

    def _shrunk(self) -> tuple[list[float], float, float]:
        """v_i, the mean of the factors s_p, and z; zeros after the first two updates, which say nothing of noise."""
        if self._updates < 3:
            return [0.0] * len(self.arms), 0.0, 0.0
        mean, scale = self._means()
        sums = self._sums
        sure = sums["foretold"] - self.config.doubt * sums["foretold_squares"].sqrt()
        factors = torch.where(sums["sizes"] > 0, sure / sums["sizes"], 0).clamp(0, 1)
        spread = sums["foretold_in_all_squares"].sqrt()
        evidence = float(sums["foretold"].sum() / spread) if spread > 0 else 0.0
        return ((factors[:, None] * mean).sum(0) / scale).tolist(), float(factors.mean()), evidence

    def state(self) -> State:
        return State({"logits": self._logits, "updates": self._updates}, dict(self._sums))

    def load_state(self, state: State) -> None:
        self._logits, self._updates = list(state.values["logits"]), state.values["updates"]
        self._sums = dict(state.tensors)
        if "shares" not in self._sums:  # of a rule that saw nothing yet, or of an earlier form, whose sums were others
            self._sums, self._updates = {}, 0
