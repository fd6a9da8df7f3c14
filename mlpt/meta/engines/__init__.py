"""Hypergradient engines: d(meta-dev loss)/d(outer tensors) through inner optimiser steps, one file an engine."""

from mlpt.meta.engines.alignment import Alignment
from mlpt.meta.engines.auto import Auto
from mlpt.meta.engines.base import Engine
from mlpt.meta.engines.finite_difference import FiniteDifference
from mlpt.meta.engines.forward_over_reverse import ForwardOverReverse
from mlpt.meta.engines.one_step import OneStep
from mlpt.meta.engines.unrolled import Higher

ENGINES: dict[str, type[Engine]] = {
    "auto": Auto,
    "higher": Higher,
    "one_step": OneStep,
    "finite_difference": FiniteDifference,
    "forward_over_reverse": ForwardOverReverse,
    "alignment": Alignment,
}
