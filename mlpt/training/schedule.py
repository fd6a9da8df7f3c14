"""Learning-rate schedules as a pure function of the step, so that resuming needs no state."""

import math
from typing import Literal

from pydantic import Field

from mlpt.errors import UserError
from mlpt.settings import Settings


class ScheduleConfig(Settings):
    """Warm-up, then a shape. Lengths below 1 are shares of all steps; from 1 on they count steps."""

    shape: Literal["linear", "cosine", "wsd", "constant", "inverse_power", "power_law"] = Field(
        "linear", description="of the rate after warm-up; wsd: constant, then a short decay"
    )
    warmup: float = Field(0.06, ge=0, description="linear from 0 to the peak")
    decay: float = Field(0.2, ge=0, description="wsd: length of the final decay, 1 - sqrt shaped")
    final: float = Field(0.0, ge=0, le=1, description="rate at the end as a share of the peak")
    power: float = Field(0.5, gt=0, description="inverse_power, power_law: exponent of the decay after warm-up")
    endless: bool = Field(True, description="power_law: never ends; otherwise it falls to `final` at the last step")
    length: int | None = Field(None, gt=0, description="steps that the schedule is made for; default: the run's")


def learning_rate(config: ScheduleConfig, step: int, total_steps: int, peak: float) -> float:
    """The rate of optimiser step `step` (0-based) of `total_steps`, or of the schedule's own `length`.

    linear         to `final` at the end. cosine: half a period to `final`.
    wsd            warm-up, stable, decay by 1 - sqrt(t) (Haegele et al., 2024).
    inverse_power  (warmup / step)^power after warm-up, never ending (Vaswani et al., 2017, at power 0.5).
    power_law      as MetaLMO has it: steps count from 1 and the curve is normalised there, not at the end of warm-up,
                   so that the highest rate of an endless one is peak * warmup^-power.
    """
    total_steps = config.length or total_steps
    warmup = _steps(config.warmup, total_steps)
    if config.shape == "power_law":
        total = math.inf if config.endless else total_steps
        return peak * power_law(step + 1, warmup, total, -config.power, config.final)
    if step < warmup:
        return peak * step / warmup
    after = step - warmup
    length = max(1, total_steps - warmup)
    if config.shape == "constant":
        return peak
    if config.shape == "inverse_power":
        return peak * (max(1, warmup) / max(1, step)) ** config.power
    if config.shape == "wsd":
        decay = max(1, _steps(config.decay, total_steps))
        begun = step - (total_steps - decay)
        share = 1 - math.sqrt(min(1.0, begun / decay)) if begun > 0 else 1.0
    elif config.shape == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, after / length)))
    else:
        share = max(0.0, 1 - after / length)
    return peak * (config.final + (1 - config.final) * share)


def power_law(step: int, warmup: int, total: float, power: float, final: float = 0.0) -> float:
    """MetaLMO's factor of step `step`, from 1: a step^power + b, which is 1 at step 1 and `final` at step `total`
    (infinite: for ever); below `warmup` linear from 0 to the factor of `warmup`."""
    if step >= total:
        return final
    slope = (final - 1) / (total**power - 1)
    if step < warmup:
        return step / warmup * (slope * warmup**power + 1 - slope)
    return slope * step**power + 1 - slope


def check_schedule(config: ScheduleConfig, total_steps: int) -> None:
    """Raise `UserError` when warm-up and decay don't fit into the run."""
    total_steps = config.length or total_steps
    needed = _steps(config.warmup, total_steps) + (_steps(config.decay, total_steps) if config.shape == "wsd" else 0)
    if needed > total_steps:
        raise UserError(
            f"the schedule needs {needed} steps of warm-up and decay, the run has {total_steps}; "
            "lower train.schedule.warmup or raise train.steps"
        )


def _steps(length: float, total_steps: int) -> int:
    return round(length * total_steps) if length < 1 else int(length)
