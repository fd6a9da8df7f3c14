"""Tiny runs with a teacher on two moons, as tests of its rules share them."""

import pytest

from mlpt.config import RunConfig
from mlpt.settings import load_settings, merge
from mlpt.storage.checkpoint import Checkpoints

LENGTH, ROWS, STEPS = 34, 4, 5
SIZES = {"hidden_size": 8, "heads": 2, "intermediate_size": 32, "layers": 1}
STILL = {"dropout": 0.0, "attention_dropout": 0.0}
MADE = {"network": {**SIZES, **STILL, "positions": LENGTH}, "seed": 3}
# With a large epsilon AdamW makes no whole steps of gradients that are nothing but rounding.
ADAMW = {"lr": 0.02, "eps": 1e-3}
RULE = {"optimizer": {"eps": ADAMW["eps"]}, "tasks": ["two_moons_10"], "rows": ROWS, "episodes": {"query_share": 0}}

TINY = {
    "seed": 5,
    "model": {"architecture": "metalmo", **SIZES, "dropout": 0},
    "objectives": {"teacher_made": MADE},
    "meta": {
        "interval": 1,
        "lag": 1,
        "rules": {"mixture": {"rule": "uniform"}, "teacher": {"rule": "teacher_hard", **RULE}},
    },
    "train": {
        "steps": STEPS,
        "batch_size": ROWS,
        "micro_batch_size": ROWS,
        "clip": 5.0,
        "optimizer": ADAMW,
        "schedule": {"shape": "power_law", "warmup": 2},
        "evaluate_batches": 1,
        "log_every": 1,
        "checkpoint_every": STEPS,
    },
    "runtime": {"num_workers": 0},
    "report": {"tensorboard": False},
}


def config_with(**changes) -> RunConfig:
    return load_settings(RunConfig, merge(TINY, changes))


def saved(folder):
    """The model's tensors and the teacher's weights in the last checkpoint."""
    tensors = Checkpoints(folder / "checkpoints", 3).latest(say=pytest.fail).tensors
    return tensors["model"], tensors["outer"]["policy/teacher/weights"]
