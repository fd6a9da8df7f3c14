"""Pretraining objectives: how tokens become inputs, and what is learned from them."""

from collections.abc import Mapping
from typing import Any

from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.atd import AddedTokenDetection
from mlpt.objectives.base import Objective
from mlpt.objectives.clm import CausalLM
from mlpt.objectives.combined import Combined
from mlpt.objectives.counted_masking import CountedMaskedLM
from mlpt.objectives.cse import ContrastiveSentences
from mlpt.objectives.distill import Distillation
from mlpt.objectives.dtd import DeletedTokenDetection
from mlpt.objectives.guided import GuidedMaskedLM
from mlpt.objectives.mlm import MaskedLM
from mlpt.objectives.teacher_made import TeacherMade
from mlpt.registry import find_class
from mlpt.settings import load_settings

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        MaskedLM,
        GuidedMaskedLM,
        AddedTokenDetection,
        DeletedTokenDetection,
        ContrastiveSentences,
        Distillation,
        Combined,
        CountedMaskedLM,
        TeacherMade,
        CausalLM,
    )
}


TYPE = "type"  # in an objective's settings: which one it is, where its name does not say so


def objective_class(name: str, values: Mapping[str, Any]) -> type[Objective]:
    """The class of the objective that people call `name`: its own, or that of its `type` (package.module:Class for one
    of the user's). Raises `UserError` in one line."""
    return find_class(str(values.get(TYPE) or name), OBJECTIVES, Objective, "objective")


def resolve_objective(name: str, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of an objective, complete. Raises `UserError`, naming the key below `where`."""
    own = {key: value for key, value in values.items() if key != TYPE}
    typed = {TYPE: values[TYPE]} if values.get(TYPE) else {}
    return typed | load_settings(objective_class(name, values).Config, own, f"{where}.{name}").model_dump()


def make_objectives(
    settings: Mapping[str, Mapping[str, Any] | None], vocabulary: Vocabulary, where: str = "objectives"
) -> dict[str, Objective]:
    """The objectives named in `settings`, in that order; each value holds the settings of that objective.

    Raises `UserError` for an unknown objective or setting; `where` is the configuration key that holds `settings`.
    """
    made: dict[str, Objective] = {}
    for name, values in settings.items():
        objective = objective_class(name, values or {})
        own = {key: value for key, value in (values or {}).items() if key != TYPE}
        made[name] = objective(load_settings(objective.Config, own, f"{where}.{name}"), vocabulary)
        made[name].name = name
    return made
