"""Rule `mask_scores`: which weights exist is learned from held-out loss, through steps of the weights that train.

TAMT (Liu et al., NAACL 2022) trains mask scores on the training loss of frozen weights; here the scores are outer
variables: inner step k updates the masked network's weights with the snapshot's AdamW, and the meta-dev loss after K
steps is differentiated back to the scores, straight through the threshold. Workers train the weights meanwhile.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.outer_optimizer import OuterOptimizer
from mlpt.meta.policy import Part
from mlpt.meta.rules.base import LookaheadRule, RuleConfig, Share
from mlpt.models.masked import THETA
from mlpt.sparsity.scores import at_threshold
from mlpt.storage.state import State

BETAS = (0.9, 0.999)  # of the outer Adam


class MaskScores(LookaheadRule):
    """One outer step on all scores at every look-ahead; each matrix keeps the count of pruned weights it began with.

    The part's tensors are the scores by parameter name; there are none before the first step.
    """

    name = "mask_scores"
    part = "masks"

    class Config(RuleConfig):
        """optimizer, lr  the outer optimiser; `adam` moves scores by about lr whatever the gradient's scale (kept
        scores begin 0.01 above the threshold, pruned ones 0.01 below), `sgd` follows it."""

        rule: Literal["mask_scores"] = "mask_scores"
        optimizer: Literal["adam", "sgd"] = "adam"
        lr: float = Field(default=2e-3, gt=0, allow_inf_nan=False)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._outer = OuterOptimizer(config.optimizer, config.lr, BETAS)

    @classmethod
    def refuses(cls, settings: Any, config: Any) -> str | None:
        masks = config.masks
        if masks is None or "scores" in masks.train:
            return "meta.rules.masks learns the scores itself: give a masks section with train: [weights, heads]"
        if masks.iterative is not None:
            return (
                "meta.rules.masks keeps each matrix's sparsity and would undo masks.iterative: set one of them to null"
            )
        return None

    def apply(self, part: Part, model: Any) -> None:
        with torch.no_grad():
            for name, scores in learned_scores(model).items():
                own = part.tensors.get(name)
                scores.copy_(own if own is not None else _centred(scores, model, name))
                model.get_buffer(name.removesuffix("scores") + "threshold").fill_(THETA)

    def share(self, part: Part, context: MetaContext) -> Share:
        scores = learned_scores(context.model)
        return Share({name: one.detach().clone().requires_grad_() for name, one in scores.items()})

    def descend(self, part: Part, gradients: Mapping[str, Tensor], context: MetaContext) -> Part:
        scores = {name: one.detach() for name, one in learned_scores(context.model).items()}
        before = {name: one > THETA for name, one in scores.items()}
        moved, state = self._outer.step(scores, gradients)
        masks = {name: at_threshold(one, int((~before[name]).sum()), THETA) for name, one in moved.items()}
        context.report["mask_changes"] = sum(int(((masks[n] > THETA) != before[n]).sum()) for n in masks)
        self._outer.load_state(state)
        return Part({"steps": self._outer.steps}, masks)

    def state(self) -> State:
        return self._outer.state()

    def load_state(self, state: State) -> None:
        self._outer.load_state(state)


def learned_scores(model: Any) -> dict[str, Tensor]:
    """The scores that the rule learns, by parameter name. The pooler's are left out: no pretraining loss reaches it.

    Raises `UserError` for a model without masks.
    """
    named = model.named_parameters()
    found = {name: one for name, one in named if name.endswith(".scores") and "pooler" not in name}
    if not found:
        raise UserError("meta.rules.masks learns masks, and the model has none: add a masks section")
    return found


def _centred(scores: Tensor, model: Any, name: str) -> Tensor:
    """`scores` moved so that their threshold is THETA, which it stays from then on, in the workers too."""
    threshold = model.get_buffer(name.removesuffix("scores") + "threshold")
    return at_threshold(scores, int((scores <= threshold).sum()), THETA)
