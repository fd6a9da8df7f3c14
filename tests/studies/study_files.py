"""A small declaration to write, change and run."""

import copy
from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "name": "tiny",
    "question": "Does a larger learning rate help a tiny encoder?",
    "decision": "Take the larger rate if it is better.",
    "base": {
        "recipe": "mometas",
        "settings": {
            "objectives": ["mlm"],
            "model": {"hidden_size": 32, "layers": 1, "heads": 2},
            "meta.rules.mixture": {"rule": "uniform"},
            "train": {
                "batch_size": 4,
                "evaluate_every": 5,
                "evaluate_batches": 2,
                "log_every": 5,
                "checkpoint_every": 5,
            },
        },
    },
    "cells": {
        "small": {"settings": {"train.optimizer.lr": 1e-4}},
        "large": {"settings": {"train.optimizer.lr": 1e-2}},
    },
    "seeds": 2,
    "budget": {"steps": 20},
    "measurements": {"mlm": {"held_out": "mlm"}, "to 6": {"reach": {"loss": 6.0}}, "steps": {"summary": "steps"}},
    "comparisons": [{"compare": ["large", "small"], "measurement": "mlm", "expect": "lower"}],
}


def declaration(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The declaration with dotted changes: None takes out, everything else is put in."""
    values = copy.deepcopy(BASE)
    for key, value in (changes or {}).items():
        *path, last = key.split("/")
        at: Any = values
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        if value is None:
            at.pop(last)
        else:
            at[last] = value
    return values


def write(folder: Path, blocks: str, changes: dict[str, Any] | None = None) -> Path:
    """A study file on prepared blocks."""
    values = declaration(changes)
    values["base"]["settings"].setdefault("data", {"source": blocks})
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
