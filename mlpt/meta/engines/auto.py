"""Engine `auto`: the cheapest of the others that fits a problem; it keeps its choice."""

import logging
import os

import torch

from mlpt.meta.engines.base import Engine, Hypergradient, Lookahead, Unsuited
from mlpt.meta.engines.finite_difference import FiniteDifference
from mlpt.meta.engines.one_step import OneStep
from mlpt.meta.engines.unrolled import Higher

# What an unrolled AdamW step keeps of each weight: gradient, new weight, both moments, and what its derivative needs.
_TENSORS_OF_A_STEP = 8

_log = logging.getLogger(__name__)


class Auto(Engine):
    """`one_step` where there is one step whose losses the outer tensors only weigh; else `higher` where its unrolled
    steps fit into half of the memory that is free, and `finite_difference` where they do not.

    `chosen` is the engine and `why` says how it came to it, once a problem has been solved.
    """

    def __init__(self) -> None:
        self.chosen: Engine | None = None
        self.why = ""

    def __call__(self, problem: Lookahead) -> Hypergradient:
        if self.chosen is not None:
            return self.chosen(problem)
        if len(problem.steps) == 1:
            try:
                found = OneStep()(problem)
            except Unsuited:
                pass
            else:
                self._choose(OneStep(), "one inner step, whose losses the outer tensors only weigh")
                return found
        needed, free = unrolled_bytes(problem), free_bytes(next(problem.model.parameters()).device)
        sizes = f"{len(problem.steps)} unrolled steps of the optimiser hold {needed / 1e9:.1f} GB and activations"
        if free is not None and needed > free / 2:
            self._choose(FiniteDifference(), f"{sizes}, and {free / 1e9:.1f} GB are free")
        else:
            self._choose(Higher(), sizes)
        assert self.chosen is not None
        return self.chosen(problem)

    def _choose(self, engine: Engine, why: str) -> None:
        self.chosen, self.why = engine, why
        _log.info("look-ahead engine %s: %s", type(engine).__name__, why)


def unrolled_bytes(problem: Lookahead) -> int:
    """What `higher` keeps of the optimiser's steps, without activations."""
    weights = sum(one.numel() * one.element_size() for one in problem.model.parameters() if one.requires_grad)
    return _TENSORS_OF_A_STEP * len(problem.steps) * weights


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the device; None where nothing says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
