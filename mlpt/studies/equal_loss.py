"""How much sooner one cell is where another one ended: tokens and seconds to the same meta-dev loss, seed by seed."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlpt.studies.declaration import Comparison
from mlpt.studies.inference import spread
from mlpt.studies.plan import Plan
from mlpt.studies.values import Dev, evaluations
from mlpt.studies.works import Pretraining

Values = dict[str, Any]


def equal_loss(plan: Plan) -> list[Values]:
    """Of each comparison that expects a lower held-out loss: what share of the second cell's tokens and seconds the
    first one took to the meta-dev loss that the second, with the same seed, had at its last evaluation."""
    found = [_compared(plan, one) for one in plan.study.declared.comparisons if one.expect == "lower"]
    return [one for one in found if one is not None]


def reached(devs: Sequence[Dev], name: str, loss: float) -> tuple[float, float] | None:
    """(tokens, seconds) at which the loss `name` (nats) first was `loss`, linearly between evaluations; None: never.

    At the first evaluation itself where it was below by then.
    """
    before: Dev | None = None
    for one in devs:
        if one.losses[name] <= loss:
            if before is None:
                return float(one.tokens), one.seconds
            part = (before.losses[name] - loss) / (before.losses[name] - one.losses[name])
            return (
                before.tokens + part * (one.tokens - before.tokens),
                before.seconds + part * (one.seconds - before.seconds),
            )
        before = one
    return None


def _compared(plan: Plan, one: Comparison) -> Values | None:
    name = plan.study.declared.measurements[one.measurement].held_out
    first, second = (plan.works.get(cell) for cell in one.compare)
    if name is None or not isinstance(first, Pretraining) or not isinstance(second, Pretraining):
        return None
    shares: dict[int, tuple[float, float]] = {}
    never: list[int] = []
    for seed in plan.study.declared.seeds:
        folders = first.run(seed), second.run(seed)
        if not (first.is_done(folders[0]) and second.is_done(folders[1])):
            continue
        ours, theirs = _devs(first, folders[0], name), _devs(second, folders[1], name)
        if not ours or not theirs:
            return None
        last = theirs[-1]
        there = reached(ours, name, last.losses[name])
        if there is None:
            never.append(seed)
        else:
            shares[seed] = there[0] / last.tokens, there[1] / last.seconds
    if not shares and not never:
        return None
    tokens, seconds = ([share[at] for share in shares.values()] for at in (0, 1))
    return {
        **{"compare": list(one.compare), "loss": name, "never": never},
        "seeds": {str(seed): {"tokens": share[0], "seconds": share[1]} for seed, share in shares.items()},
        "tokens": asdict(spread(tokens)) if shares else None,
        "seconds": asdict(spread(seconds)) if shares else None,
    }


def _devs(work: Pretraining, folder: Path, name: str) -> list[Dev]:
    return [one for one in evaluations(folder, work.result(folder)) if name in one.losses]
