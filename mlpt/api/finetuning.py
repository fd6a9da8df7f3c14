"""`mlpt finetune` and `mlpt.finetune`: a model, tasks and settings in, results out."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mlpt.config import read_recipe
from mlpt.downstream import command
from mlpt.downstream.config import FinetuneConfig
from mlpt.downstream.place import Place, growing_place
from mlpt.downstream.results import CellResult
from mlpt.errors import UserError
from mlpt.outputs import FINE_TUNING, MULTITASK, StrPath, write_file
from mlpt.reporting.steps import Steps
from mlpt.reporting.text import plain_console, say
from mlpt.run.result import name_of
from mlpt.run.saved import resolve_model
from mlpt.settings import merge, nested

if TYPE_CHECKING:
    from mlpt.downstream.multitask.results import MultitaskResult

_ASKED = "finetune.yaml"
Files = StrPath | Sequence[StrPath]


def finetune(
    model: Any,
    tasks: str | Sequence[str] | None = None,
    *,
    data_dir: StrPath | None = None,
    task_file: Files = (),
    preset: str | None = None,
    masks: StrPath | None = None,
    dense: bool = False,
    out: StrPath | None = None,
    multitask: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    quiet: bool = False,
    console: Console | None = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> "list[CellResult] | MultitaskResult":
    """Fine-tune a model on labelled tasks: seeds and learning rates of one task, or many tasks at once.

    model      a `Run`, its folder (or RUN@best, RUN@step=500), a folder, a hub name, or a .yaml with settings.
    tasks      one or several names; `mlpt.tasks.names()` lists the built-in ones.
    data_dir   folder of the original downloads, or `hub:`. task_file: YAML that describes your own labelled files.
    preset     a published protocol, such as tamt_mnli.
    masks      a mask file to apply and keep; default: those beside the model's weights, unless `dense`.
    out        folder or URI for results, predictions and models; default: finetuned. The same call goes on with what is
               there; further tasks, learning rates and seeds of the same model and settings join it.
    multitask  all tasks at once, one encoder (CA-MTL).
    workers    cells side by side, on Ray; 1: one after another in this process.
    console    where lines and the table go; None: standard error. quiet: nowhere.
    settings   of the fine-tuning, by key, such as `{"optimizer.lr": 1e-4}`; `more` likewise: `seeds=[1, 2]`.

    Returns the result of each seed and learning rate of each task; with `multitask` the result of the joint run. Scores
    are fractions. Raises `UserError` for bad input, before anything is trained.
    """
    named = name_of(model)
    command.refuse_a_task_as_model(named)
    if preset is not None and multitask:
        raise UserError("presets are protocols of single tasks; leave out --preset or --multitask")
    values: dict[str, Any] = {} if preset is None else command.read_preset(preset)
    values |= read_recipe(named) if named.endswith((".yaml", ".yml")) else {"model": named}
    values = merge(values, command.tasks_of_files(_words(task_file)))
    chosen = {"tasks": _words(tasks) or None, "masks": masks, "dense": dense or None, "out": out}
    values = {"out": "finetuned", **values, **{key: _word(one) for key, one in chosen.items() if one is not None}}
    folder = None if data_dir is None else os.fspath(data_dir)
    given = merge(nested(settings or {}), nested(more))
    console = plain_console(quiet=True) if quiet else console or plain_console(stderr=True)
    with Steps(plain_console(stderr=True, quiet=quiet)) as steps:

        def tell(line: str) -> None:
            steps.clear()
            say(line, console)

        if multitask:
            from mlpt.downstream.multitask.config import MultitaskConfig
            from mlpt.runtime.finetune import multitask as run_multitask

            joint = command.settings_from(MultitaskConfig, values, folder, given)
            joint = joint.model_copy(update={"model": resolve_model(joint.model, tell)})
            with growing_place(joint.out, MULTITASK, overwrite) as place:
                _say_where(place, tell)
                return run_multitask(joint, say=tell, show=steps.show, run_id=place.run_id)
        from mlpt.runtime.finetune import finetune_cells

        cells = command.settings_from(FinetuneConfig, values, folder, given)
        asked = cells.to_yaml()
        with growing_place(cells.out, FINE_TUNING, overwrite, {_ASKED: asked}) as place:
            _say_where(place, tell)
            results = finetune_cells(cells, workers, say=tell, show=steps.show, run_id=place.run_id)
            write_file(place.folder / _ASKED, asked.encode())  # what is there may be of an earlier call
            place.send(_ASKED)
            return results


def _say_where(place: Place, say: Callable[[str], None]) -> None:
    if place.run_id is not None:
        say(f"working folder on this machine: {place.folder}")


def _words(given: StrPath | Sequence[StrPath] | None) -> list[str]:
    """One or several, as a list."""
    if given is None:
        return []
    return [os.fspath(one) for one in ([given] if isinstance(given, str | os.PathLike) else given)]


def _word(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
