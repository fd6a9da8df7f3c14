"""The one look-ahead of an update: every rule that differentiates gives its leaves, and gets their gradient.

Inner step k minimises the arms' weighted training losses with the snapshot's AdamW; what is differentiated is the
target's held-out loss after the last step.
"""

import math
from collections.abc import Collection, Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mlpt.errors import UserError
from mlpt.meta.context import MetaContext, diverged, each_share
from mlpt.meta.engines import ENGINES
from mlpt.meta.engines.base import Engine, Forward, InnerStep, Lookahead, Outer, by_parameter_of
from mlpt.meta.policy import MIXTURE, Policy
from mlpt.meta.replicas import DEV_LOSS
from mlpt.meta.rules.base import Rule, Share
from mlpt.meta.snapshot import made_step
from mlpt.objectives.base import Inputs
from mlpt.registry import find_class
from mlpt.settings import Settings


class LookaheadConfig(Settings):
    """engine          `higher` (reference), `one_step` (one step), `finite_difference` (any, least memory),
                    `forward_over_reverse` (any, exact), `auto` (chooses one of them and logs why); `alignment`: the
                    step that training has just made, from its gradients (cheapest; the mixture alone); or your own,
                    package.module:Class.
    inner_steps     K, the AdamW steps looked ahead; they do not clip gradients.
    backward_steps  through how many of them, the last ones, the gradient is followed; null: all.
    batch_size      meta-train rows of one inner step, shared out among the arms; null: the training batch.
    dev_batch_size  meta-dev rows, shared out among the target's arms; null: the training batch.
    averaged_steps  over how many of the last steps before an update the arms' gradients are averaged that `alignment`
                    takes from training: more rows of each arm, so less noise, for the price of keeping them.
    start           step before which there is no look-ahead: a cold AdamW's is blind to a loss's scale.
    """

    engine: str = "higher"
    inner_steps: int = Field(default=1, ge=1)
    backward_steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=2)
    dev_batch_size: int | None = Field(default=None, ge=2)
    averaged_steps: int = Field(default=1, ge=1)
    start: int = Field(default=100, ge=0)

    @model_validator(mode="after")
    def _engine_fits(self) -> "LookaheadConfig":
        try:
            find_class(self.engine, ENGINES, Engine, "engine")
        except UserError as error:
            raise ValueError(str(error)) from error
        if self.engine == "one_step" and self.inner_steps != 1:
            raise ValueError("engine=one_step needs inner_steps=1; for more take higher or finite_difference")
        if self.follows_training and self.inner_steps != 1:
            raise ValueError(f"engine={self.engine} follows the one step that training made: set inner_steps=1")
        if self.averaged_steps != 1 and not self.follows_training:
            raise ValueError(
                f"engine={self.engine} makes gradients of its own: for averages of training's set engine=alignment"
            )
        return self

    @property
    def follows_training(self) -> bool:
        """Whether the engine follows the step that training has just made."""
        return find_class(self.engine, ENGINES, Engine, "engine").uses_made

    @property
    def takes_apart(self) -> bool:
        """Whether the engine tells what of a gradient goes through which parameter."""
        return self.inner_steps == 1 and find_class(self.engine, ENGINES, Engine, "engine").takes_apart


def check_parts(rule: type[Rule], lookahead: LookaheadConfig, setting: str) -> None:
    """Raise `ValueError` where `rule` needs gradients' parts by parameter, and the engine of `setting` tells none."""
    if rule.needs_parts and not lookahead.takes_apart:
        raise ValueError(
            f"rule '{rule.name}' takes alignments apart by parameter, which engine {lookahead.engine} cannot for "
            f"inner_steps={lookahead.inner_steps}: set {setting}.engine=one_step and inner_steps=1"
        )


class LookAhead:
    """Makes the look-ahead's problem of an update and solves it with one engine, which it keeps."""

    def __init__(self, config: LookaheadConfig):
        self.config = config
        self._engine = find_class(config.engine, ENGINES, Engine, "engine")()
        self._follows = config.follows_training

    def can(self, context: MetaContext) -> bool:
        """Whether there is a step to follow, for an engine that follows one."""
        return context.made is not None or not self._follows

    def gradients(
        self, policy: Policy, shares: Mapping[str, Share], context: MetaContext
    ) -> dict[str, dict[str, Tensor]]:
        """By the name of each share, the gradient of the meta-dev loss by each of its leaves; of one that asks, by
        parameter too, where the engine can tell.

        Reports `dev_loss` (after the look-ahead, by arm of the target). Raises `UserError` where a gradient is not
        finite: training has diverged.
        """
        weights = _arm_weights(policy, shares, context)
        kept = context.made if self._follows else None
        made = None if kept is None else made_step(context.model, kept, list(weights))
        inner = self._inner_inputs(list(weights), context, {} if kept is None else kept.arms)
        held_out = self._held_out(context)
        dev_losses: dict[str, float] = {}

        def loss_of_step(k: int):
            def loss(forward: Forward, outer: Outer) -> Tensor:
                mixture = _learned_weights(shares, outer) or weights
                return torch.stack(
                    [
                        mixture[arm] * forward(context.arms[arm].objective, _shaped(shares, arm, inputs, outer))
                        for arm, inputs in inner[k].items()
                    ]
                ).sum()

            return loss

        def outer_loss(forward: Forward, outer: Outer) -> Tensor:
            losses = [forward(context.arms[arm].objective, inputs) for arm, inputs in held_out.items()]
            dev_losses.update(zip(held_out, (float(loss.detach()) for loss in losses), strict=True))
            return _weighted_mean(losses, [context.target[arm] for arm in held_out])

        outer = {name: one for share in shares.values() for name, one in share.outer.items()}
        steps = [InnerStep(loss_of_step(k)) for k in range(self.config.inner_steps)]
        followed = self.config.backward_steps
        asked = any(share.by_parameter for share in shares.values())
        problem = Lookahead(context.model, context.optimizer, outer, steps, outer_loss, followed, made, asked)
        found = self._engine(problem)
        context.report[DEV_LOSS] = dev_losses
        if not all(bool(torch.isfinite(one).all()) for one in found.gradients.values()):
            raise diverged("the hypergradient", context.step)
        return {name: _of(share, found.gradients) for name, share in shares.items()}

    def _inner_inputs(
        self, arms: list[str], context: MetaContext, known: Collection[str]
    ) -> list[dict[str, Inputs | None]]:
        """Drawn once: engines evaluate an inner loss several times and must see the same inputs. None for the arms
        whose gradients are `known`."""
        size = each_share(self.config.batch_size or context.batch_size, len(arms), context.replicas)
        return [
            {arm: None if arm in known else context.train_inputs(arm, size, k) for arm in arms}
            for k in range(self.config.inner_steps)
        ]

    def _held_out(self, context: MetaContext) -> dict[str, Inputs]:
        size = each_share(self.config.dev_batch_size or context.batch_size, len(context.target), context.replicas)
        return {arm: context.dev_inputs(arm, size, 0, context.step, context.step) for arm in context.target}


def _of(share: Share, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that a share asked for."""
    parts = [by_parameter_of(leaf) for leaf in share.outer] if share.by_parameter else []
    return {name: gradients[name] for name in (*share.outer, *parts) if name in gradients}


def _arm_weights(policy: Policy, shares: Mapping[str, Share], context: MetaContext) -> dict[str, float]:
    """The arms of the inner losses: all that train where their weights are learned, else those that are drawn."""
    if any(share.weights(share.outer) is not None for share in shares.values()):
        return dict.fromkeys(context.trained, 1.0)
    mixture = policy.values(MIXTURE) or dict.fromkeys(context.trained, 1 / len(context.trained))
    return {arm: share for arm, share in mixture.items() if share > 0}


def _learned_weights(shares: Mapping[str, Share], outer: Outer) -> Mapping[str, Tensor] | None:
    for share in shares.values():
        weights = share.weights(outer)
        if weights is not None:
            return weights
    return None


def _shaped(shares: Mapping[str, Share], arm: str, inputs: Inputs | None, outer: Outer) -> Inputs | None:
    if inputs is None:
        return None
    for share in shares.values():
        inputs = share.inputs(arm, inputs, outer)
    return inputs


def _weighted_mean(losses: list[Tensor], weights: list[float]) -> Tensor:
    stacked = torch.stack(losses)
    if len(set(weights)) == 1:
        return stacked.mean()
    total = math.fsum(weights)
    return (stacked * stacked.new_tensor([weight / total for weight in weights])).sum()
