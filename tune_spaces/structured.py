"""How many heads and neurons can go before the loss pays, and what does it buy in latency?

Whole attention heads, feed-forward neurons or both leave a BERT by the norms of their weights; what stays trains on.
The front is latency, of the physically smaller model that `mlpt export` would write, against the meta-dev MLM loss.
On few tokens from scratch the losses lie close together: `model.pretrained=FOLDER` asks it of a model that you have.

Trials that run side by side disturb each other's timing, though each takes its best of several rounds on one thread:
`sweep.concurrent=1` times them alone.
"""

from ray import tune

from mlpt.tuning.space import Settings, Space


def settings(point: Settings) -> dict[str, object]:
    """Which kinds of group go, and what is left to train."""
    trained = ["scores", "weights", "heads"] if point["masks"] == "trained" else ["weights", "heads"]
    return {
        "masks.structured": point["groups"],
        "masks.sparsity": point["sparsity"],
        "masks.train": trained,
        "train.optimizer.lr": point["lr"],
    }


space = Space(
    parameters={
        "groups": tune.choice(["heads", "neurons", "both"]),
        "sparsity": tune.uniform(0.1, 0.9),
        "masks": tune.choice(["fixed", "trained"]),
        "lr": tune.loguniform(3e-4, 3e-3),
    },
    metrics={"latency": "min", "dev/mlm": "min"},
    base={
        "model": {"architecture": "bert", "hidden_size": 256, "layers": 4, "heads": 8, "dropout": 0},
        "objectives": {"atd": None, "dtd": None, "cse": None},
        "meta.rules.mixture": {"rule": "fixed", "weights": {"mlm": 1}},
    },
    settings=settings,
    tokens=500_000,
    trials=12,
    search="tpe",
    scheduler="none",
    seeds=2,
)
