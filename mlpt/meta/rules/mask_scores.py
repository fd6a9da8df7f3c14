"""Rule `mask_scores`: which weights exist is learned from held-out loss, through steps of the weights that train.

TAMT (Liu et al., NAACL 2022) trains mask scores on the training loss of frozen weights; here the scores are outer
variables: inner step k updates the masked network's weights with the snapshot's AdamW, and the meta-dev loss after K
steps is differentiated back to the scores, straight through the threshold. Workers train the weights meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.hypergradient import ENGINES, Forward, Lookahead, Outer
from mlpt.meta.policy import Evidence, Policy
from mlpt.meta.rules.base import MetaRule, check_objectives
from mlpt.models.masked import THETA
from mlpt.settings import Settings
from mlpt.sparsity.scores import at_threshold

BETA1, BETA2, EPS = 0.9, 0.999, 1e-12  # of the outer Adam; hypergradients are small numbers


class MaskScores(MetaRule):
    """One outer step on all scores at every update; each matrix keeps the count of pruned weights it began with."""

    name = "mask_scores"
    needs_weights = True
    needs_moments = True

    class Config(Settings):
        """engine         `higher` (reference) or `finite_difference` (least memory).
        inner_steps    K, the AdamW steps of the weights looked ahead.
        batch_size     meta-train texts of one inner step for each objective; null: the training batch.
        dev_batch_size meta-dev texts for each target; null: the training batch.
        target         objectives whose mean held-out loss is the meta-dev loss; empty: those of the mixture.
        optimizer, lr  the outer optimiser; `adam` moves scores by about lr whatever the gradient's scale (kept scores
                       begin 0.01 above the threshold, pruned ones 0.01 below), `sgd` follows it.
        start          step before which updates are skipped: a cold AdamW's look-ahead is blind to a loss's scale.
        """

        engine: Literal["higher", "finite_difference"] = "higher"
        inner_steps: int = Field(default=1, ge=1)
        batch_size: int | None = Field(default=None, ge=1)
        dev_batch_size: int | None = Field(default=None, ge=1)
        target: list[str] = Field(default_factory=list)
        optimizer: Literal["adam", "sgd"] = "adam"
        lr: float = Field(default=2e-3, gt=0, allow_inf_nan=False)
        start: int = Field(default=50, ge=0)

    def __init__(self, config: Config, objectives: Sequence[str]):
        super().__init__(config, objectives)
        check_objectives(config.target, objectives, "masks.target")
        self._engine = ENGINES[config.engine]()
        self._tensors: dict[str, Tensor] = {}  # scores.<name>, first.<name>, second.<name>
        self._updates = 0

    def update(self, policy: Policy, evidence: Evidence, context: MetaContext) -> Policy:
        if context.step < self.config.start:
            return policy
        scores = self.place(context.model)
        loss, gradients = self._hypergradient(policy, context, scores)
        if not all(bool(torch.isfinite(one).all()) for one in gradients.values()):
            raise UserError(f"the masks' hypergradient at step {context.step} is not finite; lower the learning rate")
        before = {name: one > THETA for name, one in scores.items()}
        count = self._updates + 1
        tensors: dict[str, Tensor] = {}
        for name, gradient in gradients.items():
            moved, first, second = self._descend(name, scores[name], gradient, count)
            tensors |= {f"first.{name}": first, f"second.{name}": second}
            tensors[f"scores.{name}"] = at_threshold(moved, int((~before[name]).sum()), THETA)
        self._tensors, self._updates = tensors, count
        masks = {name: tensors[f"scores.{name}"] for name in scores}
        context.report["mask_loss"] = float(loss)  # after the look-ahead
        context.report["mask_changes"] = sum(int(((masks[n] > THETA) != before[n]).sum()) for n in masks)
        return replace(policy, masks=masks)

    def place(self, model: Any) -> dict[str, Tensor]:
        """The scores in force, put into `model` too: the rule's own, or in the beginning the model's.

        The pooler's are left out: no pretraining loss reaches it.
        """
        named = model.named_parameters()
        found = {name: one for name, one in named if name.endswith(".scores") and "pooler" not in name}
        if not found:
            raise UserError("meta.masks learns masks, and the model has none: add a masks section")
        with torch.no_grad():
            for name, parameter in found.items():
                own = self._tensors.get(f"scores.{name}")
                parameter.copy_(own if own is not None else _centred(parameter, model, name))
                model.get_buffer(name.removesuffix("scores") + "threshold").fill_(THETA)
        return {name: parameter.detach() for name, parameter in found.items()}

    def _hypergradient(
        self, policy: Policy, context: MetaContext, scores: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mixture = {name: share for name, share in policy.mixture.items() if share > 0}
        size, dev_size = (given or context.batch_size for given in (self.config.batch_size, self.config.dev_batch_size))
        # Drawn once: engines evaluate an inner loss several times and must see the same inputs.
        inner = [
            {name: context.train_inputs(name, size, k) for name in mixture} for k in range(self.config.inner_steps)
        ]
        targets = self.config.target or list(mixture)
        held_out = {name: context.dev_inputs(name, dev_size, 0, context.step, context.step) for name in targets}

        def inner_loss(forward: Forward, k: int, outer: Outer) -> Tensor:
            return torch.stack([share * forward(name, inner[k][name]) for name, share in mixture.items()]).sum()

        def outer_loss(forward: Forward, outer: Outer) -> Tensor:
            return torch.stack([forward(name, inputs) for name, inputs in held_out.items()]).mean()

        leaves = {name: one.clone().requires_grad_() for name, one in scores.items()}
        problem = Lookahead(context.model, context.optimizer, leaves, inner_loss, outer_loss, self.config.inner_steps)
        found = self._engine(problem)
        return found.loss, found.gradients

    def _descend(self, name: str, scores: Tensor, gradient: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The scores after one outer step, and the outer Adam's moments."""
        zeros = torch.zeros_like(gradient)
        first = BETA1 * self._tensors.get(f"first.{name}", zeros).to(gradient) + (1 - BETA1) * gradient
        second = BETA2 * self._tensors.get(f"second.{name}", zeros).to(gradient) + (1 - BETA2) * gradient.square()
        if self.config.optimizer == "sgd":
            return scores - self.config.lr * gradient, first, second
        size = (second / (1 - BETA2**count)).sqrt() + EPS
        return scores - self.config.lr * (first / (1 - BETA1**count)) / size, first, second

    def state(self) -> dict[str, Any]:
        return {"updates": self._updates}

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._updates, self._tensors = state["updates"], dict(tensors)


def _centred(scores: Tensor, model: Any, name: str) -> Tensor:
    """`scores` moved so that their threshold is THETA, which it stays from then on, in the workers too."""
    threshold = model.get_buffer(name.removesuffix("scores") + "threshold")
    return at_threshold(scores, int((scores <= threshold).sum()), THETA)
