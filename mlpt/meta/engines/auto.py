"""Engine `auto`: the cheapest of the others that fits a problem; it keeps its choice."""

import logging

from mlpt.errors import UserError
from mlpt.meta.engines.base import Engine, Hypergradient, Lookahead, Unsuited
from mlpt.meta.engines.finite_difference import FiniteDifference
from mlpt.meta.engines.forward_over_reverse import ForwardOverReverse
from mlpt.meta.engines.memory import attention_without_second_derivative, free_bytes, needed_bytes
from mlpt.meta.engines.one_step import OneStep
from mlpt.meta.engines.unrolled import Higher

_EXACT: dict[str, type[Engine]] = {"higher": Higher, "forward_over_reverse": ForwardOverReverse}  # fastest first

_log = logging.getLogger(__name__)


class Auto(Engine):
    """`one_step` where there is one step whose losses the outer tensors only weigh; else the first of `higher` and
    `forward_over_reverse` that takes at most half of the memory that is free, and `finite_difference` where neither
    does, or where the model's attention has no second derivative.

    `chosen` is the engine and `why` says how it came to it, once a problem has been solved. Raises `UserError` with the
    number of bytes where none fits.
    """

    takes_apart = True

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
        self._choose(*_fitting(problem))
        assert self.chosen is not None
        return self.chosen(problem)

    def _choose(self, engine: Engine, why: str) -> None:
        self.chosen, self.why = engine, why
        _log.info("look-ahead engine %s: %s", type(engine).__name__, why)


def _fitting(problem: Lookahead) -> tuple[Engine, str]:
    """The engine for several steps, or for what `one_step` cannot do, and why."""
    needed, free = needed_bytes(problem), free_bytes(next(problem.model.parameters()).device)
    count = f"{len(problem.steps)} inner steps"
    attention = attention_without_second_derivative(problem.model)
    if attention is not None:
        why = f"{attention} attention has no second derivative"
    else:
        for name, engine in _EXACT.items():
            if free is None or needed[name] <= free / 2:
                room = "" if free is None else f", and {_gigabytes(free)} are free"
                return engine(), f"{count} need {_gigabytes(needed[name])}{room}"
        why = f"{count} need {_gigabytes(needed[name])} by {name}, and {_gigabytes(free or 0)} are free"
    least = needed["finite_difference"]
    if free is not None and least > free:
        raise UserError(
            f"a look-ahead of {count} needs {least:,} bytes and {free:,} are free: lower meta.lookahead.batch_size or "
            "inner_steps, or give the meta-learner a machine of its own"
        )
    return FiniteDifference(), why


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
