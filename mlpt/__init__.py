"""mlpt pretrains encoder language models while learning how to pretrain them.

import mlpt
run = mlpt.pretrain("quickstart", train={"steps": 200}, runtime={"num_workers": 0})
print(run.summary["held_out"], run.metrics["loss/mlm"])

Importing this package imports nothing else; each name below does once it is used (docs/PYTHON.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpt import sparsity, tasks
    from mlpt.api.evaluation import evaluate
    from mlpt.api.finetuning import finetune
    from mlpt.api.masks import export
    from mlpt.api.pretraining import pretrain
    from mlpt.api.pushing import push
    from mlpt.config import RunConfig, load_run_config
    from mlpt.errors import UserError
    from mlpt.run.callbacks import Callback, Control
    from mlpt.run.result import Run, load_run

__version__ = "0.1.0"

_FROM = {
    "Callback": "mlpt.run.callbacks",
    "Control": "mlpt.run.callbacks",
    "Run": "mlpt.run.result",
    "RunConfig": "mlpt.config",
    "UserError": "mlpt.errors",
    "evaluate": "mlpt.api.evaluation",
    "export": "mlpt.api.masks",
    "finetune": "mlpt.api.finetuning",
    "load_run": "mlpt.run.result",
    "load_run_config": "mlpt.config",
    "pretrain": "mlpt.api.pretraining",
    "push": "mlpt.api.pushing",
}
_ROOMS = ("sparsity", "tasks")

__all__ = [  # noqa: RUF022 (as the page that describes them)
    "pretrain",
    "load_run",
    "Run",
    "Callback",
    "Control",
    "finetune",
    "evaluate",
    "export",
    "push",
    "sparsity",
    "tasks",
    "load_run_config",
    "RunConfig",
    "UserError",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"mlpt.{name}")
    if name not in _FROM:
        raise AttributeError(f"module 'mlpt' has no attribute '{name}'")
    return getattr(import_module(_FROM[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
