"""What should a teacher be asked to do, and how hard should its judge push, for the lowest held-out loss?

At equal tokens: a masker and a writer of inputs, by the hard rule and, where it can, by the soft one; inner steps, the
weight of the judge, the interval of updates, the entropy bonus and the masker's budget. `none`, masked modelling alone,
is among the choices: a teacher that does not beat it in the mean over seeds has not paid for itself.
"""

from ray import tune

from mlpt.tuning.space import Settings, Space

_SMALL = {"hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 256, "positions": 64}


def settings(point: Settings) -> dict[str, object]:
    """A teacher takes only its own settings; the rest of the point does not concern it."""
    teacher = str(point["teacher"])
    if teacher == "none":
        return {"meta.rules.mixture": {"rule": "fixed", "weights": {"mlm": 1.0}}, "meta.rules.teacher": None}
    rule: dict[str, object] = {
        "rule": "teacher_soft" if teacher == "soft_inputs" else "teacher_hard",
        "meta_weight": point["meta_weight"],
        "entropy": point["entropy"],
        "optimizer": {"lr": point["teacher_lr"]},
    }
    if teacher == "soft_inputs":
        rule["inner_steps"] = point["inner_steps"]
    kind = "masker" if teacher == "masker" else "inputs"
    return {
        "objectives.teacher_made": {"teacher": kind, "network": _SMALL, "masking": {"budget": point["budget"]}},
        "meta.rules.mixture": {"rule": "fixed", "weights": {"teacher_made": point["share"], "mlm": 1.0}},
        "meta.rules.teacher": rule,
        "meta.interval": point["interval"],
        "meta.lag": point["interval"],
    }


space = Space(
    parameters={
        "teacher": tune.choice(["none", "masker", "inputs", "soft_inputs"]),
        "share": tune.choice([1.0, 4.0]),
        "inner_steps": tune.choice([1, 3, 5]),
        "meta_weight": tune.choice([1.0, 10.0, 100.0]),
        "interval": tune.choice([10, 20, 50]),
        "entropy": tune.choice([0.0, 0.01, 0.1]),
        "teacher_lr": tune.loguniform(1e-4, 3e-2),
        "budget": tune.choice([0.15, 0.3]),
    },
    metrics={"dev/mlm": "min"},
    recipe="denoiser",
    settings=settings,
    tokens=1_000_000,
    trials=12,
    search="tpe",
    scheduler="asha",
    seeds=3,
)
