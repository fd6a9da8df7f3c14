"""Rule `hypergradient`: the mixture goes where a look-ahead of real optimiser steps says held-out losses fall.

Outer variables are the mixture's logits. Inner step k minimises sum_i p_i L_i(meta-train batch k) with the snapshot's
AdamW; the meta-dev loss after K steps is differentiated back to the logits (one-step case: DoGE, Fan et al. 2023, and
AC-ODM use its gradient alignment as a reward; here it is the gradient itself, through AdamW).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.hypergradient import ENGINES, Forward, Lookahead, Outer
from mlpt.meta.policy import Evidence, Policy
from mlpt.meta.rules.base import MetaRule, check_objectives, entropy_gradient, softmax, with_floor
from mlpt.settings import Settings

BETA1, BETA2, EPS = 0.9, 0.99, 1e-12  # of the outer Adam; hypergradients are small numbers


class Hypergradient(MetaRule):
    """One outer step on the logits at every update, once AdamW is warm. The inner steps do not clip gradients."""

    name = "hypergradient"
    needs_weights = True
    needs_moments = True

    class Config(Settings):
        """engine         `higher` (reference), `one_step` (K = 1, cheapest), `finite_difference` (any K, least memory).
        inner_steps    K, the AdamW steps looked ahead.
        batch_size     meta-train texts of one inner step, shared out among the objectives; null: the training batch.
        dev_batch_size meta-dev texts, shared out among the targets; null: the training batch.
        target         objectives whose mean held-out loss is the meta-dev loss; empty: all.
        optimizer, lr  the outer optimiser of the logits; `adam` takes steps of about lr whatever the scale of the
                       hypergradient, `sgd` follows it.
        entropy        pull towards the uniform mixture, in steps of lr * entropy * dH/dlogits, decoupled from the
                       hypergradient as AdamW's decay is.
        floor          least probability of an objective.
        smoothing      share of the old mixture that an update keeps.
        start          step before which updates are skipped: a cold AdamW's look-ahead is blind to a loss's scale.
        """

        rule: Literal["hypergradient"] = "hypergradient"
        engine: Literal["higher", "one_step", "finite_difference"] = "higher"
        inner_steps: int = Field(default=1, ge=1)
        batch_size: int | None = Field(default=None, ge=2)
        dev_batch_size: int | None = Field(default=None, ge=2)
        target: list[str] = Field(default_factory=list)
        optimizer: Literal["adam", "sgd"] = "adam"
        lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)
        entropy: float = Field(default=0.1, ge=0, allow_inf_nan=False)
        floor: float = Field(default=0.02, ge=0, lt=1)
        smoothing: float = Field(default=0.5, ge=0, lt=1)
        start: int = Field(default=100, ge=0)

        @model_validator(mode="after")
        def _one_step_is_one_step(self) -> "Hypergradient.Config":
            if self.engine == "one_step" and self.inner_steps != 1:
                raise ValueError("engine=one_step needs inner_steps=1; for more take higher or finite_difference")
            return self

    def __init__(self, config: Config, objectives: Sequence[str]):
        super().__init__(config, objectives)
        check_objectives(config.target, objectives, "meta.mixture.target")
        with_floor(self.first_mixture(), config.floor)  # a floor that does not fit is refused now
        self._engine = ENGINES[config.engine]()
        self._targets = list(config.target) or self.objectives
        self._logits = [0.0] * len(objectives)
        self._first = [0.0] * len(objectives)  # the outer Adam's moments
        self._second = [0.0] * len(objectives)
        self._updates = 0

    def update(self, policy: Policy, evidence: Evidence, context: MetaContext) -> Policy:
        if context.step < self.config.start:
            return policy
        gradient = self._hypergradient(context)
        if not all(math.isfinite(one) for one in gradient):
            raise UserError(
                f"the hypergradient at step {context.step} is not finite: "
                "training has diverged; lower the learning rate"
            )
        context.report["hypergradient"] = dict(zip(self.objectives, gradient, strict=True))
        self._descend(gradient)
        wanted = with_floor(dict(zip(self.objectives, softmax(self._logits), strict=True)), self.config.floor)
        keep = self.config.smoothing
        return replace(
            policy, mixture={name: keep * policy.mixture[name] + (1 - keep) * wanted[name] for name in self.objectives}
        )

    def _hypergradient(self, context: MetaContext) -> list[float]:
        share = _share(self.config.batch_size or context.batch_size, self.objectives)
        dev_share = _share(self.config.dev_batch_size or context.batch_size, self._targets)
        # Drawn once: engines evaluate an inner loss several times and must see the same inputs.
        inner = [
            {name: context.train_inputs(name, share, k) for name in self.objectives}
            for k in range(self.config.inner_steps)
        ]
        held_out = {name: context.dev_inputs(name, dev_share, 0, context.step, context.step) for name in self._targets}
        dev_losses: dict[str, float] = {}

        def inner_loss(forward: Forward, k: int, outer: Outer) -> Tensor:
            n, floor = len(self.objectives), self.config.floor
            mixture = floor + (1 - n * floor) * outer["logits"].softmax(0)
            return torch.stack(
                [p * forward(name, inner[k][name]) for p, name in zip(mixture, inner[k], strict=True)]
            ).sum()

        def outer_loss(forward: Forward, outer: Outer) -> Tensor:
            losses = [forward(name, inputs) for name, inputs in held_out.items()]
            dev_losses.update(zip(held_out, (float(loss.detach()) for loss in losses), strict=True))
            return torch.stack(losses).mean()

        device = next(context.model.parameters()).device
        logits = torch.tensor(self._logits, device=device, requires_grad=True)
        problem = Lookahead(
            context.model, context.optimizer, {"logits": logits}, inner_loss, outer_loss, self.config.inner_steps
        )
        found = self._engine(problem).gradients["logits"]
        context.report["dev_loss"] = dev_losses  # after the look-ahead
        return [float(one) for one in found]

    def _descend(self, gradient: Sequence[float]) -> None:
        """One outer step on the logits, in float64."""
        count = self._updates + 1
        first, second, logits = [], [], []
        flattening = entropy_gradient(softmax(self._logits))
        for s, g, m, v, flat in zip(self._logits, gradient, self._first, self._second, flattening, strict=True):
            first.append(BETA1 * m + (1 - BETA1) * g)
            second.append(BETA2 * v + (1 - BETA2) * g * g)
            corrected = math.sqrt(second[-1] / (1 - BETA2**count)) + EPS
            direction = first[-1] / (1 - BETA1**count) / corrected if self.config.optimizer == "adam" else g
            logits.append(s + self.config.lr * (self.config.entropy * flat - direction))
        self._logits, self._first, self._second, self._updates = logits, first, second, count

    def state(self) -> dict[str, Any]:
        return {
            "logits": self._logits,
            "first_moment": self._first,
            "second_moment": self._second,
            "updates": self._updates,
        }

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._logits, self._updates = list(state["logits"]), state["updates"]
        self._first, self._second = list(state["first_moment"]), list(state["second_moment"])


def _share(texts: int, names: Sequence[str]) -> int:
    """Texts for each of `names`; at least two, which is what contrastive objectives need."""
    return max(2, texts // len(names))
