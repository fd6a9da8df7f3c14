"""How fast, and on which schedule, should AdamW learn when tokens are few?

Peak rate, weight decay, second-moment decay, warm-up and shape of the schedule, against the held-out MLM loss after a
fixed number of tokens, with a fixed uniform mixture so that nothing else moves. ASHA drops the bad two thirds early.
"""

from ray import tune

from mlpt.tuning.space import Settings, Space


def settings(point: Settings) -> dict[str, object]:
    """The betas of AdamW are one setting."""
    named = {key: value for key, value in point.items() if key != "beta2"}
    return {**named, "train.optimizer.betas": [0.9, point["beta2"]]}


space = Space(
    parameters={
        "train.optimizer.lr": tune.loguniform(1e-4, 1e-2),
        "train.optimizer.weight_decay": tune.loguniform(1e-4, 1e-1),
        "beta2": tune.choice([0.95, 0.98, 0.999]),
        "train.schedule.shape": tune.choice(["linear", "cosine", "wsd"]),
        "train.schedule.warmup": tune.uniform(0.01, 0.15),
    },
    metrics={"dev/mlm": "min"},
    base={"meta.rules.mixture": {"rule": "uniform"}},
    settings=settings,
    tokens=1_000_000,
    trials=12,
    search="tpe",
    scheduler="asha",
    seeds=3,
)
