"""Which rule should draw the objectives, or which mix the texts, for the lowest loss on the target at equal tokens?

The mixture's rule, the interval and lag of its updates, its learning rate, the entropy bonus (gamma) or floor that
keeps it exploring, and the masking rate of the noise. `uniform` and MLM alone are among the choices: a rule that does
not beat them in the mean over seeds has not paid for itself.

Of several texts (`data.sources`) fixed mixes are searched, beside runs of the recipe `domains` that learn theirs: equal
parts and a learned mix are the first two trials.
"""

from collections.abc import Callable
from typing import Any

from ray import tune

from mlpt.arms import LEARNED
from mlpt.errors import UserError
from mlpt.run.build import arms_on
from mlpt.tuning.space import Settings, Space


def settings(point: Settings) -> dict[str, object]:
    """A rule takes only its own settings; the rest of the point does not concern it."""
    rule = point["rule"]
    mixture: dict[str, object] = {"rule": rule}
    if rule == "mlm_alone":
        mixture = {"rule": "fixed", "weights": {"mlm": 1.0}}
    elif rule == "mometas":
        mixture |= {"lr": point["meta_lr"], "gamma": point["gamma"]}
    elif rule in ("hypergradient", "famo"):
        mixture |= {"lr": point["meta_lr"], "floor": point["floor"]}
    return {
        "meta.rules.mixture": mixture,
        "meta.lookahead.engine": "one_step",
        "meta.interval": point["interval"],
        "meta.lag": round(point["interval"] * float(point["lag_share"])),
        "objectives.mlm.probability": point["noise"],
    }


def mix(point: Settings) -> dict[str, object]:
    """What of the point is neither `rule` nor `meta_lr` is an arm's weight in a fixed mix."""
    if point["rule"] == "fixed":
        weights = {name: weight for name, weight in point.items() if name not in ("rule", "meta_lr")}
        return {"meta.rules.mixture": {"rule": "fixed", "weights": weights}}
    return {"meta.rules.mixture": {"rule": point["rule"], "lr": point["meta_lr"]}}


def of_texts(space: Space, trial_of: Callable[[Space], Any]) -> Space:
    """The space of runs on several texts whose mix is not given."""
    data = trial_of(space).data
    texts = list(data.sources or ())
    if data.mix == LEARNED and not texts:
        raise UserError(
            "this sweep mixes texts that data.sources names, such as data.sources={legal: PATH, wiki: PATH}"
        )
    mixed = space.changed(recipe="domains", settings=mix, tokens=2_000_000)
    if len(texts) < 2 or trial_of(mixed).data.mix != LEARNED:
        return space
    arms = arms_on(trial_of(mixed), texts).trained
    even = dict.fromkeys(arms, 1.0)
    return mixed.changed(
        parameters={
            "rule": tune.choice(["fixed", "dga"]),
            "meta_lr": tune.loguniform(0.1, 0.8),
            **{arm: tune.loguniform(0.02, 1) for arm in arms},
        },
        first=({"rule": "fixed", "meta_lr": 0.4, **even}, {"rule": "dga", "meta_lr": 0.4, **even}),
    )


space = Space(
    parameters={
        "rule": tune.choice(["mlm_alone", "uniform", "mometas", "exp3", "famo", "hypergradient"]),
        "interval": tune.choice([25, 50, 100]),
        "lag_share": tune.choice([0.0, 0.5, 1.0]),
        "meta_lr": tune.loguniform(0.02, 2.0),
        "gamma": tune.choice([0.0, 0.5, 2.0]),
        "floor": tune.choice([0.0, 0.02, 0.05]),
        "noise": tune.choice([0.15, 0.3, 0.4]),
    },
    metrics={"dev/target": "min"},
    settings=settings,
    tokens=1_000_000,
    trials=12,
    search="tpe",
    scheduler="asha",
    seeds=3,
    fitted=of_texts,
)
