"""Rules that learn the mixture of objectives: one file a rule, named in `RULES`."""

from typing import Annotated, Any, Union

from pydantic import Field

from mlpt.meta.rules.base import MetaRule
from mlpt.meta.rules.exp3 import Exp3
from mlpt.meta.rules.famo import Famo
from mlpt.meta.rules.fixed import Fixed
from mlpt.meta.rules.hypergradient import Hypergradient
from mlpt.meta.rules.mometas import Mometas
from mlpt.meta.rules.uniform import Uniform

RULES: dict[str, type[MetaRule]] = {rule.name: rule for rule in (Fixed, Uniform, Mometas, Exp3, Famo, Hypergradient)}

# The configuration of any one rule; its field `rule` says which.
_CONFIGS = tuple(rule.Config for rule in RULES.values())
MixtureConfig: Any = Annotated[Union[_CONFIGS], Field(discriminator="rule")]  # noqa: UP007 (a union made at run time)
