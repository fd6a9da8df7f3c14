"""Rule `teacher_hard`: REINFORCE, the reward being how well the student's step agrees with what it needs afterwards.

MetaLMO (Shen, 2021), hard labels: h is the cosine between the student's AdamW step on the teacher's sample and the
query's gradient after a plain step on the support rows (first-order MAML). h times the sample's negative log-likelihood
is minimised: what helped becomes likelier.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlpt.meta.context import MetaContext
from mlpt.meta.engines.base import InnerStep, Lookahead, Sgd, forward_at, leaves
from mlpt.meta.engines.path import Path
from mlpt.meta.judges import Judgement, Weighted, loss_of
from mlpt.meta.rules.teacher import Coming, TeacherConfig, TeacherRule, corrupted, gradients_of, is_made
from mlpt.objectives.teacher_made import TeacherMade
from mlpt.storage.state import State


class TeacherHard(TeacherRule):
    """One update from one sample."""

    name = "teacher_hard"

    class Config(TeacherConfig):
        """baseline  decay of a moving average of h that is subtracted from it; null (published): none.
        clip      of the student's gradients in the look-ahead, each on its own; published: max_norm, as in training.
        """

        rule: Literal["teacher_hard"] = "teacher_hard"
        baseline: float | None = Field(default=None, ge=0, lt=1)
        clip: float = Field(default=5.0, ge=0, description="0: not clipped")

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._mean: float | None = None  # moving average of h

    def meta_gradient(
        self,
        made: TeacherMade,
        coming: Sequence[Coming],
        judged: Judgement,
        context: MetaContext,
        figures: dict[str, Any],
    ) -> tuple[list[Tensor], State]:
        batches, likelihood = [], []
        device = next(context.model.parameters()).device
        for one in coming:
            if not is_made(one, made.name, context):
                batches.append(corrupted(one, context))
                continue
            inputs, loss = made.hard(one.batch, one.noise)
            batches.append(Weighted(made.name, inputs.to(device), one.planned.weight))
            likelihood.append(one.planned.weight * loss)
        loss = torch.stack(likelihood).sum()
        dot, h = self._agreement(batches, judged, context, figures)
        figures |= {"sample_loss": float(loss.detach()), "dot": dot, "h": h}
        if not -1 <= h <= 1:  # not a number neither
            figures["skipped_reward"] = True
            return [], State()
        reward = h - (self._mean or 0.0)
        kept = State()
        if self.config.baseline is not None:
            before = h if self._mean is None else self._mean
            kept = State({"mean": self.config.baseline * before + (1 - self.config.baseline) * h})
        scale = self.config.meta_weight * reward
        return [scale * one for one in gradients_of(loss, list(made.writer.network.parameters()))], kept

    def keep(self, state: State) -> None:
        self._mean = state.values.get("mean", self._mean)

    def state(self) -> State:
        found = super().state()
        return State({**found.values, "mean": self._mean}, found.tensors)

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self._mean = state.values["mean"]

    def _agreement(
        self, batches: Sequence[Weighted], judged: Judgement, context: MetaContext, figures: dict[str, Any]
    ) -> tuple[float, float]:
        """The inner product and the cosine of the student's step (before minus after) and the query's gradient."""
        count = self.config.support_steps if judged.support else 0
        plain = Sgd(self.config.inner_lr)
        steps = [InnerStep(_loss(batches))] + [InnerStep(_loss(judged.support), plain)] * count
        problem = Lookahead(context.model, context.optimizer, {}, steps, _loss(judged.query))
        start = leaves(context.model)
        path = Path(problem)
        visited = [start]
        losses = []
        for step in steps:
            loss, gradients = self._clipped(step.loss(forward_at(problem, visited[-1]), {}), visited[-1])
            visited.append({**visited[-1], **path.step(gradients)})
            losses.append(loss)
        query, after = self._clipped(problem.outer_loss(forward_at(problem, visited[-1]), {}), visited[-1])
        figures |= {"student_loss": losses[0], "query_loss": query}
        if count:
            figures["support_loss"] = losses[1]
        moved = {name: start[name].detach() - visited[1][name].detach() for name in after}
        dot = torch.stack([(moved[name] * one).sum() for name, one in after.items()]).sum()
        norms = [torch.stack([one.norm() for one in side.values()]).norm() for side in (moved, after)]
        return float(dot), float(dot / (norms[0] * norms[1]))

    def _clipped(self, loss: Tensor, weights: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """The loss and its gradients by the weights that it depends on, clipped together."""
        trained = {name: one for name, one in weights.items() if one.requires_grad}
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        gradients = {name: one for name, one in zip(trained, found, strict=True) if one is not None}
        if self.config.clip:
            norm = torch.stack([one.norm() for one in gradients.values()]).norm()
            scale = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
            gradients = {name: scale * one for name, one in gradients.items()}
        return float(loss.detach()), gradients


def _loss(batches: Sequence[Weighted]) -> Any:
    return lambda forward, outer: loss_of(forward, batches)
