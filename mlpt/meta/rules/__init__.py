"""Rules, one file each: `RULES` names them by the part of the policy that they own. Users bring more by their path."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlpt.errors import UserError
from mlpt.meta.rules.ado import Ado
from mlpt.meta.rules.base import Rule, RuleConfig
from mlpt.meta.rules.dga import Dga
from mlpt.meta.rules.dga_shrunk import DgaShrunk
from mlpt.meta.rules.doremi import Doremi
from mlpt.meta.rules.exp3 import Exp3
from mlpt.meta.rules.famo import Famo
from mlpt.meta.rules.fixed import Fixed
from mlpt.meta.rules.hypergradient import Hypergradient
from mlpt.meta.rules.knobs import Knobs
from mlpt.meta.rules.loss_ratio import LossRatio
from mlpt.meta.rules.mask_scores import MaskScores
from mlpt.meta.rules.mometas import Mometas
from mlpt.meta.rules.requestion import Requestion
from mlpt.meta.rules.staged import Staged
from mlpt.meta.rules.teacher_hard import TeacherHard
from mlpt.meta.rules.teacher_soft import TeacherSoft
from mlpt.meta.rules.uniform import Uniform
from mlpt.registry import find_class
from mlpt.settings import load_settings

_RULES: tuple[type[Rule], ...] = (
    Fixed,
    Uniform,
    Staged,
    Mometas,
    Exp3,
    Famo,
    Hypergradient,
    Dga,
    DgaShrunk,
    Ado,
    Doremi,
    LossRatio,
    MaskScores,
    Knobs,
    Requestion,
    TeacherHard,
    TeacherSoft,
)
RULES: dict[str, dict[str, type[Rule]]] = {}
for _rule in _RULES:
    RULES.setdefault(_rule.part, {})[_rule.name] = _rule


def rule_class(part: str, name: str) -> type[Rule]:
    """The rule `name` of a part. Raises `UserError` for one that there is not, or that owns another part."""
    registered = RULES.get(part, {})
    if not registered and ":" not in name:
        raise UserError(
            f"no rule here learns a part '{part}'; there are rules of {', '.join(RULES)}, and your own as "
            "package.module:Class"
        )
    found = find_class(name, registered, Rule, f"rule of {part}")
    if found.part != part:
        raise UserError(f"rule '{name}' owns the part {found.part}; write meta.rules.{found.part}")
    return found


def rule_config(part: str, values: Any, where: str = "") -> RuleConfig:
    """The settings of a part's rule: a mapping with `rule`, or the rule's bare name; `where` they stand."""
    where = where or f"meta.rules.{part}"
    if isinstance(values, RuleConfig):
        return values
    if isinstance(values, str):
        values = {"rule": values}
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is a rule's name or its settings, such as {{rule: NAME}}, not {values!r}")
    named = dict(values)
    if "rule" not in named and len(RULES.get(part, {})) == 1:
        named["rule"] = next(iter(RULES[part]))
    if "rule" not in named:
        raise UserError(f"{where} says no rule; there are {', '.join(RULES.get(part, {})) or 'none here'}")
    found = rule_class(part, str(named["rule"]))
    config: RuleConfig = load_settings(found.Config, named, where)
    return config


def make_rules(configs: Mapping[str, RuleConfig], arms: Sequence[str]) -> dict[str, Rule]:
    """The rules of a run over the arms that train, each in its first state, by part."""
    return {part: rule_class(part, config.rule)(config, arms) for part, config in configs.items()}
