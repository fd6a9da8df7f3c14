"""From the words of `mlpt finetune` to its settings: presets, task files, options and `key=value`, in this order."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mlpt.errors import UserError
from mlpt.settings import Settings, load_settings, merge
from mlpt.tasks import TASKS, read_task_file

S = TypeVar("S", bound=Settings)

_PREFIX = "finetune_"  # of the presets' files among the recipes


def preset_names() -> list[str]:
    """The packaged presets of fine-tuning."""
    files = [file.name for file in resources.files("mlpt.recipes").iterdir()]
    named = [name.removesuffix(".yaml") for name in files if name.startswith(_PREFIX) and name.endswith(".yaml")]
    return sorted(name.removeprefix(_PREFIX) for name in named)


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset. Raises `UserError` where there is none of that name."""
    if name not in preset_names():
        raise UserError(f"there is no preset '{name}'; there are {', '.join(preset_names())}")
    text = (resources.files("mlpt.recipes") / f"{_PREFIX}{name}.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def tasks_of_files(files: Sequence[str]) -> dict[str, Any]:
    """The settings that task files make: the own tasks in them, all of which are to be trained on."""
    own = [task for file in files for task in read_task_file(file)]
    if not own:
        return {}
    return {"tasks": [task.name for task in own], "source": {"own": [task.model_dump() for task in own]}}


def refuse_a_task_as_model(model: str) -> None:
    """`--tasks sst2 rte base`: an option takes one word, and the next one stands where the model is expected."""
    if model in TASKS and not Path(model).exists():
        raise UserError(
            f"'{model}' is a task and stands where the model is expected; name the model first: "
            f"mlpt finetune MODEL --tasks {model} ..."
        )


def settings_from(cls: type[S], given: Mapping[str, Any], data_dir: str | None, settings: Mapping[str, Any]) -> S:
    """`cls` from what options gave, the task files' folder, and settings by key. Raises `UserError`."""
    values = dict(given)
    if data_dir is not None:
        values = merge(values, {"source": {"data_dir": data_dir}})
    values = merge(values, settings)
    if not values.get("tasks"):
        raise UserError("no task is named; say which, for example --tasks sst2,rte, or --task-file task.yaml")
    return load_settings(cls, values)
