"""Pretraining objectives: how tokens become inputs, and what is learned from them."""

import difflib
from collections.abc import Mapping
from typing import Any

from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.objectives.atd import AddedTokenDetection
from mlpt.objectives.base import Objective
from mlpt.objectives.combined import Combined
from mlpt.objectives.cse import ContrastiveSentences
from mlpt.objectives.distill import Distillation
from mlpt.objectives.dtd import DeletedTokenDetection
from mlpt.objectives.guided import GuidedMaskedLM
from mlpt.objectives.mlm import MaskedLM
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
    )
}


def make_objectives(
    settings: Mapping[str, Mapping[str, Any] | None], vocabulary: Vocabulary, where: str = "objectives"
) -> dict[str, Objective]:
    """The objectives named in `settings`, in that order; each value holds the settings of that objective.

    Raises `UserError` for an unknown objective or setting; `where` is the configuration key that holds `settings`.
    """
    made: dict[str, Objective] = {}
    for name, values in settings.items():
        if name not in OBJECTIVES:
            near = difflib.get_close_matches(name, OBJECTIVES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(OBJECTIVES)}"
            raise UserError(f"unknown objective '{name}' in '{where}'; {hint}")
        objective = OBJECTIVES[name]
        made[name] = objective(load_settings(objective.Config, values or {}, f"{where}.{name}"), vocabulary)
    return made
