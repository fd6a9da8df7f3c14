"""How much of a network can go, and how should its mask be found, before the held-out loss pays for it?

Sparsity against the meta-dev MLM loss, as a Pareto front: masks from magnitude or at random, which stay as they are,
train together with the weights, train alone, or are learned from held-out loss by the meta-learner. The base is trained
from scratch; `model.pretrained=FOLDER` asks the same of a model that you have, as TAMT does.
"""

from ray import tune

from mlpt.tuning.space import Settings, Space

TRAINED = {
    "fixed mask": ["weights", "heads"],
    "joint": ["scores", "weights", "heads"],
    "scores alone": ["scores", "heads"],
    "meta-learned": ["weights", "heads"],
}


def settings(point: Settings) -> dict[str, object]:
    """Meta-learned masks need the rule that learns them, and scores an outer rate of their own."""
    method = str(point["method"])
    learned = {"rule": "mask_scores", "lr": point["score_lr"]}
    return {
        "masks.method": method,
        "masks.sparsity": point["sparsity"],
        "masks.init": point["init"],
        "masks.train": TRAINED[method],
        "meta.rules.masks": learned if method == "meta-learned" else None,
        "meta.lookahead": {"engine": "finite_difference", "inner_steps": 1, "start": 50},
        "train.optimizer.lr": point["lr"],
    }


space = Space(
    parameters={
        "sparsity": tune.uniform(0.3, 0.95),
        "method": tune.choice(list(TRAINED)),
        "init": tune.choice(["magnitude", "random"]),
        "lr": tune.loguniform(5e-4, 5e-3),
        "score_lr": tune.loguniform(5e-4, 5e-3),
    },
    metrics={"sparsity": "max", "dev/mlm": "min"},
    base={
        "objectives": {"atd": None, "dtd": None, "cse": None},
        "meta.rules.mixture": {"rule": "fixed", "weights": {"mlm": 1}},
        "meta.interval": 20,
        "meta.lag": 20,
        "masks.reset": {"cadence": "interval", "interval": 50},
    },
    settings=settings,
    tokens=500_000,
    trials=12,
    search="tpe",
    scheduler="none",
    seeds=2,
)
