"""Rule `hypergradient` of the part `knobs`: settings of an objective go where a look-ahead says held-out losses fall.

What self-evolution learning (Zhong et al., ACL Findings 2023) fixes by hand: the weight of label smoothing, the
masking rate, and how sharp the threshold of hardness is. `mlpt.objectives.knobs` says how each is differentiated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mlpt.meta.context import MetaContext
from mlpt.meta.engines.base import Outer
from mlpt.meta.outer_optimizer import OuterOptimizer
from mlpt.meta.policy import Part
from mlpt.meta.rules.base import LookaheadRule, RuleConfig, Share
from mlpt.objectives import objective_class
from mlpt.objectives.base import Inputs
from mlpt.objectives.knobs import Knob
from mlpt.objectives.prediction import TokenPrediction
from mlpt.storage.state import State

BETAS = (0.9, 0.99)  # of the outer Adam
RANGES: dict[Knob, tuple[float, float]] = {"smoothing": (0.0, 0.5), "rate": (0.05, 0.6), "temperature": (0.05, 5.0)}


class Knobs(LookaheadRule):
    """One outer step on the knobs at every look-ahead; they begin as the objective's settings say.

    A knob is low + (high - low) * sigmoid(x) within its range, and the outer variable is x.
    """

    name = "hypergradient"
    part = "knobs"

    class Config(RuleConfig):
        """objective      whose knobs; null: the one objective that has those of `learn`.
        learn          `smoothing`: the weight of label smoothing, differentiated exactly. `rate` (`probability` of the
                       objective or of its `hard`) and `temperature` (`hard.temperature`): by the score function, whose
                       noise falls with the rows of a look-ahead; small `lr`, large `meta.lookahead.batch_size`.
        ranges         [low, high] of a knob where it is not to be smoothing [0, 0.5], rate [0.05, 0.6], temperature
                       [0.05, 5].
        optimizer, lr  the outer optimiser; `adam` takes steps of about lr in x whatever the scale of the hypergradient,
                       `sgd` follows it.
        """

        rule: Literal["hypergradient"] = "hypergradient"
        objective: str | None = None
        learn: tuple[Knob, ...] = Field(default=("smoothing",), min_length=1)
        ranges: dict[Knob, tuple[float, float]] = Field(default_factory=dict)
        optimizer: Literal["adam", "sgd"] = "adam"
        lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)

        @field_validator("ranges")
        @classmethod
        def _inside(cls, ranges: dict[Knob, tuple[float, float]]) -> dict[Knob, tuple[float, float]]:
            for name, (low, high) in ranges.items():
                most = math.inf if name == "temperature" else 1.0
                if not 0 <= low < high <= most or not math.isfinite(high):
                    raise ValueError(f"the range of {name} is two numbers, 0 <= low < high <= {most:g}")
            return ranges

        def range_of(self, knob: Knob) -> tuple[float, float]:
            """Its least and its largest value."""
            return self.ranges.get(knob, RANGES[knob])

    def __init__(self, config: Config, arms: Sequence[str]):
        super().__init__(config, arms)
        self._outer = OuterOptimizer(config.optimizer, config.lr, BETAS)

    @classmethod
    def refuses(cls, settings: Any, config: Any) -> str | None:
        if config.meta.lookahead.engine == "one_step":
            return "meta.rules.knobs differentiates by what the model is called with: set meta.lookahead.engine=higher"
        having: dict[str, dict[Knob, float | None]] = {}
        for name, values in config.objectives.items():
            made = objective_class(name, values)
            if settings.objective in (None, name) and issubclass(made, TokenPrediction):
                found = made.knob_settings(values)
                having |= {name: found} if {*settings.learn} <= found.keys() else {}
        if len(having) != 1:
            wanted = f"'{settings.objective}'" if settings.objective else "one objective (name it: objective=NAME)"
            return f"meta.rules.knobs needs {wanted} that has {', '.join(settings.learn)}; there are {len(having)}"
        ((name, found),) = having.items()
        how = config.objectives[name]["smoothing"]
        moves = "smoothing" in settings.learn and (how["kind"], how["reference"]) == ("token", "current")
        if moves and config.meta.lookahead.engine == "finite_difference":
            return (
                "engine finite_difference would displace the reference of the smoothing with the weights: set "
                f"objectives.{name}.smoothing.reference=frozen, or meta.lookahead.engine=higher"
            )
        for knob in settings.learn:
            value, (low, high) = found[knob], settings.range_of(knob)
            where = f"objectives.{name}.{_WHERE[knob]}"
            if value is None:
                return f"meta.rules.knobs learns {knob}, and the objective '{name}' does without: set {where}"
            if not low < value < high:
                return (
                    f"{where}, where {knob} begins, is {value:g}; meta.rules.knobs.ranges wants it inside {low:g} to "
                    f"{high:g}"
                )
        return None

    def apply(self, part: Part, model: Any) -> None:
        self._objective(model).turn(self.config.learn, part.values)

    def share(self, part: Part, context: MetaContext) -> Share:
        objective = self._objective(context.model)
        device = next(context.model.parameters()).device
        leaves = {
            f"knobs.{name}": torch.tensor(x, device=device, requires_grad=True)
            for name, x in self._positions(part, objective).items()
        }
        arms = [name for name, arm in context.arms.items() if arm.objective == objective.name]
        return _Turned(leaves, self, objective, arms)

    def descend(self, part: Part, gradients: Mapping[str, Tensor], context: MetaContext) -> Part:
        positions = self._positions(part, self._objective(context.model))
        leaves = {f"knobs.{name}": torch.tensor(x, dtype=torch.float64) for name, x in positions.items()}
        found = {name: one.double().cpu() for name, one in gradients.items()}
        moved, state = self._outer.step(leaves, found)
        self._outer.load_state(state)
        values: dict[str, float] = {name: float(self.value(name, moved[f"knobs.{name}"])) for name in positions}
        context.report["knobs"] = {
            "gradient": {name: float(found[f"knobs.{name}"]) for name in positions},
            **values,
        }
        return Part(dict(values.items()))

    def value(self, knob: Knob, x: Tensor) -> Tensor:
        """A knob at the outer variable x."""
        low, high = self.config.range_of(knob)
        return low + (high - low) * x.sigmoid()

    def state(self) -> State:
        return self._outer.state()

    def load_state(self, state: State) -> None:
        self._outer.load_state(state)

    def _objective(self, model: Any) -> TokenPrediction:
        for name, one in model.objectives.items():
            if isinstance(one, TokenPrediction) and self.config.objective in (None, name) and self._fits(one):
                return one
        raise ValueError(f"no objective has the knobs {', '.join(self.config.learn)}")  # which `refuses` has seen

    def _fits(self, objective: TokenPrediction) -> bool:
        return {*self.config.learn} <= objective.knob_settings(objective.config.model_dump()).keys()

    def _positions(self, part: Part, objective: TokenPrediction) -> dict[Knob, float]:
        """The outer variable of each knob: the inverse of `value`."""
        first = objective.knob_settings(objective.config.model_dump())
        positions: dict[Knob, float] = {}
        for knob in self.config.learn:
            low, high = self.config.range_of(knob)
            share = (float(part.values.get(knob, first[knob])) - low) / (high - low)
            share = min(max(share, 1e-6), 1 - 1e-6)
            positions[knob] = math.log(share / (1 - share))
        return positions


_WHERE: dict[Knob, str] = {
    "smoothing": "smoothing.kind and .weight",
    "rate": "probability (of hard, where there is one)",
    "temperature": "hard.temperature",
}


class _Turned(Share):
    """The inputs of the objective's arms as functions of the knobs."""

    def __init__(self, leaves: Mapping[str, Tensor], rule: Knobs, objective: TokenPrediction, arms: Sequence[str]):
        super().__init__(leaves)
        self._rule, self._objective, self._arms = rule, objective, arms

    def inputs(self, arm: str, inputs: Inputs, outer: Outer) -> Inputs:
        if arm not in self._arms:
            return inputs
        value = {knob: self._rule.value(knob, outer[f"knobs.{knob}"]) for knob in self._rule.config.learn}
        if "smoothing" in value:
            inputs = replace(inputs, smoothing=value["smoothing"])
        if inputs.choice is None or inputs.positions is None:
            return inputs
        first = self._objective.knob_settings(self._objective.config.model_dump())
        knobs = {**first, **self._objective.knobs}
        rate, temperature = (
            value[knob].cpu() if knob in value else knobs.get(knob) for knob in ("rate", "temperature")
        )
        assert rate is not None
        ratio = inputs.choice.ratio(rate, 1.0 if temperature is None else temperature).to(inputs.input_ids.device)
        return replace(inputs, weights=ratio[inputs.positions // inputs.input_ids.shape[1]])
