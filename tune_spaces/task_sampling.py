"""Which task should each row of a multi-task batch come from, for the best mean over tasks at equal tokens?

CA-MTL's uncertainty, fixed shares (uniform, proportional, by temperature), one task after another, and shares that a
meta-learner's rule adapts (MOMETAS, EXP3), together with the learning rate and what is frozen. `uniform` is among the
choices: a sampler that does not beat it in the mean over seeds has not paid for itself.

Say which model, built like BERT or RoBERTa: `mlpt tune task_sampling model=runs/RUN`. It needs no files as it is, and
takes others by `tasks=[rte,mrpc] source.data_dir=GLUE`.
"""

from ray import tune

from mlpt.tuning.space import Settings, Space


def settings(point: Settings) -> dict[str, object]:
    """A sampler takes only its own settings; the rest of the point does not concern it."""
    rule = point["rule"]
    sampler: dict[str, object] = {"rule": rule}
    if rule == "temperature":
        sampler["temperature"] = point["temperature"]
    elif rule in ("mometas", "exp3"):
        sampler = {"rule": "policy", "interval": point["interval"], "learner": {"rule": rule}}
    return {"sampler": sampler, "optimizer.lr": point["lr"], "freeze": point["freeze"]}


space = Space(
    parameters={
        "rule": tune.choice(
            ["mt_uncertainty", "uniform", "proportional", "temperature", "sequential", "mometas", "exp3"]
        ),
        "temperature": tune.choice([2, 5, 10]),
        "interval": tune.choice([10, 25]),
        "lr": tune.loguniform(2e-5, 1e-3),
        "freeze": tune.choice(["lower_half", "none"]),
    },
    metrics={"dev/mean": "max"},
    job="multitask",
    base={"tasks": ["docs_package", "docs_summary"], "conditional.max_length": 64},
    settings=settings,
    tokens=500_000,
    trials=14,
    search="tpe",
    scheduler="asha",
    seeds=3,
    evaluations=6,
)
