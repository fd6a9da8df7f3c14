"""Trials that fine-tune on many tasks at once (`mlpt finetune --multitask`): task samplers, rates, freezing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from mlpt.config import RuntimeConfig
from mlpt.downstream.loading import load_tokenizer, model_folder
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.data import read_tasks, tokenise_tasks
from mlpt.downstream.multitask.results import selected
from mlpt.downstream.multitask.run import run_multitask
from mlpt.downstream.multitask.saving import build_multitask_model
from mlpt.errors import UserError
from mlpt.models.conditional.encoder import load_stock_config
from mlpt.models.quiet import quiet
from mlpt.run.saved import resolve_model
from mlpt.settings import load_settings, merge, nested
from mlpt.training.group import Group
from mlpt.tuning.plan import Budget, Plan, Say, equal_parts
from mlpt.tuning.reporter import Reporter
from mlpt.tuning.searching import PAUSING
from mlpt.tuning.space import Space


class MultitaskJob:
    """See `Job`. Metrics: `dev/TASK` is the metric that selects for a task, a fraction, on its first dev split;
    `dev/mean` their mean. A trial is judged by its last evaluation, not by its best."""

    follow_up = "mlpt finetune {} --multitask max_steps=null epochs=3"

    def config(
        self, space: Space, overrides: Mapping[str, Any], point: Mapping[str, Any], seed: int
    ) -> MultitaskConfig:
        given = {name: value for name, value in overrides.items() if name != "runtime"}
        values = merge(merge(nested(space.base), given), nested(space.settings(point))) | {"seed": seed}
        if not values.get("model"):
            raise UserError(f"space '{space.name}' fine-tunes a model; say which: model=FOLDER (a run, or a hub name)")
        config = load_settings(MultitaskConfig, values)
        source = config.source.model_copy(update={"data_dir": _absolute(config.source.data_dir)})
        return config.model_copy(update={"model": _absolute(resolve_model(config.model)), "source": source})

    def runtime(self, config: MultitaskConfig, overrides: Mapping[str, Any]) -> RuntimeConfig:
        runtime = load_settings(RuntimeConfig, overrides.get("runtime") or {}, "runtime")
        if runtime.most_workers > 1:
            raise UserError("multi-task trials train in one process each; leave out runtime.num_workers")
        return runtime

    def check(self, space: Space, config: MultitaskConfig) -> None:
        known = ["dev/mean", *(f"dev/{task}" for task in config.tasks)]
        for metric in space.metrics:
            if metric not in known:
                raise UserError(f"space '{space.name}': no trial reports '{metric}'; there are {', '.join(known)}")
        if space.scheduler in PAUSING:
            raise UserError(f"multi-task trials cannot be paused as {space.scheduler} wants; use sweep.scheduler=asha")

    def data(self, config: MultitaskConfig, folder: Path, say: Say) -> tuple[str, int]:
        """Tokenises the tasks once, and builds the model once: what does not fit together shows before any trial."""
        cache, length = folder / "features", config.conditional.max_length
        stock = load_stock_config(model_folder(config.model))
        rows = read_tasks(config.tasks, config.source)
        tasks = tokenise_tasks(rows, load_tokenizer(config.model), stock, length, config.span, cache, False)
        with quiet():
            build_multitask_model(config, tasks.outputs, tasks.kinds)
        sizes = ", ".join(f"{data.task.name} {len(data.splits['train']):,}" for data in tasks.data)
        say(f"tasks (rows to train on): {sizes}")
        return str(cache), length

    def budget(self, config: MultitaskConfig, space: Space, length: int) -> Budget:
        """Counts every row as `length` tokens, the most that it can have: an upper bound of the tokens trained on."""
        return equal_parts(space, config.batch_size * length)

    def budgeted(self, config: MultitaskConfig, space: Space, length: int) -> MultitaskConfig:
        """`config` with the space's budget in steps."""
        budget = self.budget(config, space, length)
        return config.model_copy(update={"max_steps": budget.steps, "evaluate_every": budget.every})

    def train(self, config: MultitaskConfig, plan: Plan, run_dir: Path, reporter: Reporter) -> None:
        torch.set_num_threads(max(1, int(plan.runtime.cpus_per_worker)))
        every = self.budget(config, plan.space, plan.length).every
        kept = {"keep_model": "none", "export": False, "predict_test": False, "checkpoint_every": every}
        own = self.budgeted(config, plan.space, plan.length).model_copy(
            update={**kept, "out": str(run_dir), "feature_cache": plan.data}
        )
        group = None if plan.runtime.gpus_per_worker else Group()
        result = run_multitask(own, _silent, lambda step, scores: reporter.evaluated(step, _named(scores)), group)
        reporter.finish(_named(selected(result.last, result.selects)))

    def recipe(self, config: MultitaskConfig, space: Space, length: int) -> str:
        """The command says where results go."""
        written = self.budgeted(config, space, length).model_dump(mode="json", exclude={"out"})
        return yaml.safe_dump(written, sort_keys=False)


def _named(scores: Mapping[str, float]) -> dict[str, float]:
    return {"dev/mean": sum(scores.values()) / len(scores), **{f"dev/{task}": value for task, value in scores.items()}}


def _absolute(path: Any) -> Any:
    """Trials run in folders of their own; a hub name stays as it is."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


def _silent(text: str) -> None:
    pass
