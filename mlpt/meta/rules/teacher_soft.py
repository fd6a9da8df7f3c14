"""Rule `teacher_soft`: the query's loss is differentiated back to every token distribution that the teacher wrote.

MetaLMO (Shen, 2021), soft labels: AdamW on the teacher's soft batches, plain steps on the support rows, the query's
loss; the second-order gradient goes through all of it into the distributions, and on through the teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.engines import ENGINES
from mlpt.meta.engines.base import Forward, InnerStep, Lookahead, Outer, Sgd
from mlpt.meta.judges import Judgement, Weighted, loss_of
from mlpt.meta.rules.teacher import Coming, TeacherConfig, TeacherRule, corrupted, is_made, teacher_of
from mlpt.models.soft import check_soft_inputs
from mlpt.models.writers import SoftInputs, detached
from mlpt.objectives import objective_class
from mlpt.objectives.teacher_made import TeacherMade
from mlpt.storage.state import State


class TeacherSoft(TeacherRule):
    """One update from the expectation of what the teacher writes."""

    name = "teacher_soft"

    class Config(TeacherConfig):
        """engine       `higher` (reference) or `finite_difference` (least memory).
        inner_steps  K, AdamW steps on the teacher's batches, the first of them the step to come; published: 1. They do
                     not clip gradients.
        """

        rule: Literal["teacher_soft"] = "teacher_soft"
        engine: Literal["higher", "finite_difference"] = "higher"
        inner_steps: int = Field(default=1, ge=1)

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._engine = ENGINES[config.engine]()

    @classmethod
    def refuses(cls, settings: Any, config: Any) -> str | None:
        for name, values in config.objectives.items():
            if issubclass(objective_class(name, values), TeacherMade) and values.get("teacher") == "masker":
                return "a masker makes no soft samples: set meta.rules.teacher.rule=teacher_hard"
        return super().refuses(settings, config)

    def check(self, model: Any) -> None:
        check_soft_inputs(model.backbone, teacher_of(model).vocabulary.size)

    def meta_gradient(
        self,
        made: TeacherMade,
        coming: Sequence[Coming],
        judged: Judgement,
        context: MetaContext,
        figures: dict[str, Any],
    ) -> tuple[list[Tensor], State]:
        further = [[self.another(made.name, context, k)] for k in range(1, self.config.inner_steps)]
        written: dict[str, Tensor] = {}  # distributions with the teacher's graph, by the name of their leaf
        outer: dict[str, Tensor] = {}
        losses: list[float] = []
        steps = []
        for k, batches in enumerate([list(coming), *further]):
            made_here = [
                self._leaf(f"{k}/{place}", one, made, context, written, outer) for place, one in enumerate(batches)
            ]
            steps.append(InnerStep(_loss(made_here, losses)))
        if judged.support:
            support = InnerStep(_loss([("", one) for one in judged.support], losses), Sgd(self.config.inner_lr))
            steps += [support] * self.config.support_steps
        query = _loss([("", one) for one in judged.query])
        found = self._engine(Lookahead(context.model, context.optimizer, outer, steps, query))
        figures |= {"student_loss": losses[0], "query_loss": float(found.loss)}
        if not all(bool(torch.isfinite(one).all()) for one in found.gradients.values()):
            raise UserError(
                f"the teacher's gradient at step {context.step} is not finite: training has diverged; lower the "
                "learning rate or meta.rules.teacher.inner_lr"
            )
        words = list(made.writer.network.parameters())
        weight = self.config.meta_weight
        back = torch.autograd.grad(
            list(written.values()), words, [weight * found.gradients[name] for name in written], allow_unused=True
        )
        return [torch.zeros_like(p) if one is None else one for p, one in zip(words, back, strict=True)], State()

    def _leaf(
        self,
        name: str,
        coming: Coming,
        made: TeacherMade,
        context: MetaContext,
        written: dict[str, Tensor],
        outer: dict[str, Tensor],
    ) -> tuple[str, Weighted]:
        """A micro-batch of an inner step; of the teacher's, the distributions become leaves to differentiate by."""
        if not is_made(coming, made.name, context):
            return "", corrupted(coming, context)
        soft = made.soft(coming.batch).to(next(context.model.parameters()).device)
        assert isinstance(soft, SoftInputs)
        leaf = detached(soft)
        for key in ("probabilities", "wanted"):
            graph, one = getattr(soft, key), getattr(leaf, key)
            if one.is_floating_point():
                written[f"{name}/{key}"], outer[f"{name}/{key}"] = graph, one
        return name, Weighted(made.name, leaf, coming.planned.weight)


def _loss(named: Sequence[tuple[str, Weighted]], told: list[float] | None = None) -> Callable[[Forward, Outer], Tensor]:
    """The loss of batches as a function of the outer tensors: those of a name take their distributions from there."""

    def loss(forward: Forward, outer: Outer) -> Tensor:
        found = loss_of(forward, [_at(name, one, outer) for name, one in named])
        if told is not None:
            told.append(float(found.detach()))
        return found

    return loss


def _at(name: str, one: Weighted, outer: Outer) -> Weighted:
    own: dict[str, Any] = {
        key: outer[f"{name}/{key}"] for key in ("probabilities", "wanted") if f"{name}/{key}" in outer
    }
    return one._replace(inputs=replace(one.inputs, **own)) if own else one
