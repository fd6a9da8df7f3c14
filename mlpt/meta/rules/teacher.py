"""What rules of the teacher share: one flat tensor of weights, its judge, the auxiliary loss, and one AdamW step.

MetaLMO (Shen, 2021): each update looks at the step to come, on the very batches that the teacher in force makes for it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.judges import Judge, Judgement, TargetJudge, TaskJudge, Weighted, why_no_tasks
from mlpt.meta.outer_optimizer import OuterOptimizer
from mlpt.meta.policy import Evidence, Part, Planned
from mlpt.meta.rules.base import Rule, RuleConfig
from mlpt.models.writers import flat_weights
from mlpt.objectives import objective_class
from mlpt.objectives.teacher_made import TeacherMade
from mlpt.randomness import torch_generator
from mlpt.settings import Betas, Settings
from mlpt.storage.state import State
from mlpt.tasks import TaskSource
from mlpt.tasks.episodes import MLM, EpisodeConfig
from mlpt.tasks.text_to_text import FormatConfig

WEIGHTS = "weights"  # the part's one tensor: (n,) float32, the teacher's parameters in their order
_GATHERED = "gathered"  # of the rule's state: the mean gradient so far of the updates since the last step


class TeacherOptimizerConfig(Settings):
    """AdamW of the teacher; the defaults are the published ones, where student and teacher share a schedule."""

    lr: float | None = Field(default=None, ge=0, description="null: the rate of the student's step, schedule and all")
    betas: Betas = Field(default=(0.9, 0.98), description="decay a step of the two moments, each >= 0 and < 1")
    eps: float = Field(default=1e-6, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(default=0.01, ge=0, description="of all weights")


class TeacherConfig(RuleConfig):
    """What rules of the teacher have in common."""

    tasks: tuple[str, ...] = Field(
        default=(),
        description="labelled tasks that judge the teacher, in the text-to-text format; 'mlm' among them: masked "
        "meta-dev text, as often as all others; none: meta.target does",
    )
    source: TaskSource = Field(default_factory=TaskSource, description="where the labelled rows are")
    episodes: EpisodeConfig = Field(default_factory=EpisodeConfig)
    rows: int | None = Field(default=None, ge=2, description="of support and of query; null: the training batch")
    count_padding: bool = Field(
        default=False, description="published: losses of support and query count all positions that are no padding"
    )
    formats: FormatConfig = Field(default_factory=FormatConfig, description="of the labelled tasks")
    support_steps: int = Field(default=1, ge=0, description="plain gradient steps on the support rows")
    inner_lr: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="of those steps")
    meta_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="of what the judge says")
    auxiliary: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="of the loss that keeps the teacher near masked modelling"
    )
    entropy: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="bonus for the entropy of what it draws")
    start: int = Field(default=0, ge=0, description="step before which the judge is not asked")
    accumulate: int = Field(
        default=1, gt=0, description="updates whose mean gradient makes one step of the teacher; published: 4 (hard)"
    )
    max_norm: float = Field(default=5.0, gt=0, description="of the teacher's gradient")
    optimizer: TeacherOptimizerConfig = TeacherOptimizerConfig()


class Coming(NamedTuple):
    """A micro-batch that the look-ahead trains on: what is planned, its rows, and the noise that corrupts them."""

    planned: Planned
    batch: Batch
    noise: torch.Generator


class TeacherRule(Rule):
    """Subclasses define `meta_gradient`."""

    part: ClassVar[str] = "teacher"
    needs_weights: ClassVar[bool] = True
    needs_moments: ClassVar[bool] = True
    needs_coming: ClassVar[bool] = True

    def __init__(self, config: Any, arms: Sequence[str]):
        super().__init__(config, arms)
        how = config.optimizer
        self._outer = OuterOptimizer("adamw", how.lr or 0.0, how.betas, how.eps, how.weight_decay)
        self._judge: Judge | None = None
        self._warned = False
        self._gathered: tuple[int, Tensor | None] = 0, None  # updates since the teacher's last step, their mean so far

    @classmethod
    def refuses(cls, settings: Any, config: Any) -> str | None:
        made = [n for n, values in config.objectives.items() if issubclass(objective_class(n, values), TeacherMade)]
        if len(made) != 1:
            return f"meta.rules.teacher learns the teacher of one objective 'teacher_made', and there are {len(made)}"
        if MLM in settings.tasks and config.model.attend_within == "document":
            return f"meta.rules.teacher.tasks: '{MLM}' judges by whole blocks: leave it or model.attend_within out"
        if settings.tasks:
            return why_no_tasks(settings.tasks, settings.source, "meta.rules.teacher")
        if not config.meta.target:
            return "nothing judges the teacher: name labelled tasks (meta.rules.teacher.tasks), or a meta.target"
        if any(name.split("@")[0] == made[0] for name in config.meta.target):
            return f"meta.target names '{made[0]}', whose loss the teacher itself would make: name another objective"
        return None

    def apply(self, part: Part, model: Any) -> None:
        teacher_of(model).obey(part.tensors.get(WEIGHTS))

    def update(self, part: Part, evidence: Evidence, context: MetaContext) -> Part:
        made = teacher_of(context.model)
        warnings = self._judge_of(made, context)
        words = list(made.writer.network.parameters())
        coming = self._coming(evidence, made.name, context)
        figures: dict[str, Any] = {}
        gradient = [torch.zeros_like(one) for one in words]
        extra = State()
        if context.step >= self.config.start and self.config.meta_weight:
            assert self._judge is not None
            judged = self.meta_gradient(made, coming, self._judge.draw(context), context, figures)
            gradient, extra = judged if judged[0] else (gradient, judged[1])
        texts = [(one, one.batch.tokens) for one in coming if is_made(one, made.name, context)]
        own = self._own_loss(made, texts, context, figures)
        if own is not None:
            gradient = [a + b for a, b in zip(gradient, gradients_of(own, words), strict=True)]
        figures |= made.writer.describe(torch.cat([tokens for _, tokens in texts]))
        if (wrong := made.writer.collapsed(figures)) and not self._warned:
            warnings.append(f"step {context.step}: {wrong}; raise meta.rules.teacher.auxiliary or entropy")
        context.report["teacher"] = figures
        if warnings:
            context.report["warnings"] = [*context.report.get("warnings", []), *warnings]
        flat = torch.cat([one.flatten() for one in gradient]).float().cpu()
        figures["gradient_norm"] = float(flat.norm())
        if not torch.isfinite(flat).all():
            figures["skipped"] = True
            return part
        self._warned = self._warned or wrong is not None
        self.keep(extra)
        count, before = self._gathered
        flat = flat / self.config.accumulate + (0.0 if before is None else before)
        if count + 1 < self.config.accumulate:
            self._gathered = count + 1, flat
            # A new part, though its weights stay: what is gathered travels with it.
            return Part({**part.values, "gathered": count + 1}, part.tensors)
        self._gathered = 0, None
        norm = float(flat.norm())
        group = context.optimizer.param_groups[0]
        rate = self.config.optimizer.lr
        self._outer.lr = group["lr"] / group.get("scale", 1.0) if rate is None else rate
        clipped = flat * min(1.0, self.config.max_norm / (norm + 1e-6))
        moved, state = self._outer.step({WEIGHTS: flat_weights(made.writer.network)}, {WEIGHTS: clipped})
        self._outer.load_state(state)
        return Part({"steps": self._outer.steps}, moved)

    def meta_gradient(
        self,
        made: TeacherMade,
        coming: Sequence[Coming],
        judged: Judgement,
        context: MetaContext,
        figures: dict[str, Any],
    ) -> tuple[list[Tensor], State]:
        """The gradient of what the judge says by each of the teacher's parameters (none: it says nothing this time),
        and what `keep` is to hold once the update is made."""
        raise NotImplementedError(f"{type(self).__name__}.meta_gradient")

    def keep(self, state: State) -> None:
        """Take over what `meta_gradient` gave."""

    def state(self) -> State:
        outer, (count, flat) = self._outer.state(), self._gathered
        gathered = {} if flat is None else {_GATHERED: flat}
        values = {"outer": dict(outer.values), "warned": self._warned, "gathered": count}
        return State(values, {**outer.tensors, **gathered})

    def load_state(self, state: State) -> None:
        tensors = dict(state.tensors)
        count, flat = state.values.get("gathered", 0), tensors.pop(_GATHERED, None)
        self._gathered = count, flat if count else None
        self._outer.load_state(State(state.values["outer"], tensors))
        self._warned = state.values["warned"]

    def _judge_of(self, made: TeacherMade, context: MetaContext) -> list[str]:
        """Make the judge at the first update; its warnings then."""
        if self._judge is not None:
            return []
        how = self.config
        if how.tasks:
            shown = how.rows, how.count_padding
            self._judge = TaskJudge(how.tasks, how.source, how.episodes, *shown, made.name, context, how.formats)
        else:
            self._judge = TargetJudge(how.rows)
        return list(self._judge.warnings)

    def _coming(self, evidence: Evidence, objective: str, context: MetaContext) -> list[Coming]:
        """The step to come; where the teacher makes none of it, a batch that it would make."""
        coming = [Coming(one, *context.coming_batch(one)) for one in evidence.coming]
        if any(is_made(one, objective, context) for one in coming):
            return coming
        return [self.another(objective, context, 0)]

    def another(self, objective: str, context: MetaContext, index: int) -> Coming:
        """Batch `index` of training text that is not the step's own, for the teacher to make something of."""
        arm = next(name for name in context.trained if context.arms[name].objective == objective)
        batch, noise = context.train_batch(arm, context.batch_size, index)
        return Coming(Planned(arm, index, batch.rows, 1.0), batch, noise)

    def _own_loss(
        self, made: TeacherMade, texts: Sequence[tuple[Coming, Tensor]], context: MetaContext, figures: dict[str, Any]
    ) -> Tensor | None:
        """The auxiliary loss and the entropy bonus; None where there is neither."""
        parts = []
        for coming, tokens in texts:
            planned = coming.planned
            noise = torch_generator(context.seed, "teacher/auxiliary", context.step, planned.slot)
            auxiliary = made.writer.auxiliary(tokens, noise) if self.config.auxiliary else None
            if auxiliary is not None:
                figures["auxiliary"] = figures.get("auxiliary", 0.0) + planned.weight * float(auxiliary.detach())
                parts.append(planned.weight * self.config.auxiliary * auxiliary)
            if self.config.entropy:
                parts.append(-planned.weight * self.config.entropy * made.writer.entropy(tokens))
        return torch.stack(parts).sum() if parts else None


def teacher_of(model: Any) -> TeacherMade:
    """The one objective whose batches a teacher makes. Raises `UserError` where there is none."""
    for objective in model.objectives.values():
        if isinstance(objective, TeacherMade):
            return objective
    raise UserError("meta.rules.teacher needs an objective 'teacher_made'")


def is_made(coming: Coming, objective: str, context: MetaContext) -> bool:
    """Whether the teacher makes this micro-batch."""
    return context.arms[coming.planned.arm].objective == objective


def corrupted(coming: Coming, context: MetaContext) -> Weighted:
    """A micro-batch as a worker trains on it."""
    name = context.arms[coming.planned.arm].objective
    inputs = context.model.objectives[name].corrupt(coming.batch, coming.noise)
    return Weighted(name, inputs.to(next(context.model.parameters()).device), coming.planned.weight)


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """By each of `parameters`; zeros where the loss does not depend on one."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if one is None else one for p, one in zip(parameters, found, strict=True)]
