"""Which rule should draw the objectives, and how eagerly, for the lowest held-out loss at equal tokens?

The mixture's rule, the interval and lag of its updates, its learning rate, the entropy bonus (gamma) or floor that
keeps it exploring, and the masking rate of the noise. `uniform` and MLM alone are among the choices: a rule that does
not beat them in the mean over seeds has not paid for itself.
"""

from ray import tune

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
    metrics={"dev/mlm": "min"},
    settings=settings,
    tokens=1_000_000,
    trials=12,
    search="tpe",
    scheduler="asha",
    seeds=3,
)
