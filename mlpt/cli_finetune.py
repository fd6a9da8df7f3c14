"""The command `mlpt finetune`. Parse, call, print; `mlpt.cli` adds it."""

from typing import Annotated, Any

import typer

from mlpt.cli_options import Overwrite
from mlpt.errors import UserError


def finetune(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|RECIPE [key=value ...]",
            help="a run (or RUN@best, RUN@step=500), a folder, a hub name, or settings in a .yaml",
        ),
    ],
    tasks: Annotated[list[str] | None, typer.Option(help="one or many: --tasks sst2,rte or --tasks sst2 rte")] = None,
    data_dir: Annotated[str | None, typer.Option(help="folder of the original downloads, or hub:")] = None,
    task_file: Annotated[
        list[str] | None, typer.Option(help="YAML that describes your own labelled files; may be given again")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="a published protocol, for example tamt_mnli")] = None,
    masks: Annotated[
        str | None, typer.Option(help="masks to apply and keep; default: those beside the model's weights")
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="leave the masks beside the model's weights aside")] = False,
    out: Annotated[str | None, typer.Option(help="for results, predictions and models; default: finetuned")] = None,
    multitask: Annotated[bool, typer.Option("--multitask", help="all tasks at once, one encoder (CA-MTL)")] = False,
    workers: Annotated[int, typer.Option(help="cells side by side; 1: one after another, without Ray")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a model on labelled tasks: seeds and learning rates of one task, or many tasks at once."""
    from mlpt.config import read_recipe
    from mlpt.downstream import command
    from mlpt.outputs import FINE_TUNING, MULTITASK, growing_folder
    from mlpt.reporting import text
    from mlpt.reporting.steps import Steps
    from mlpt.settings import merge, split_words

    (model, *more), settings = split_words(words)
    command.refuse_a_task_as_model(model)
    if preset is not None and multitask:
        raise UserError("presets are protocols of single tasks; leave out --preset or --multitask")
    given: dict[str, Any] = {} if preset is None else command.read_preset(preset)
    given |= read_recipe(model) if model.endswith((".yaml", ".yml")) else {"model": model}
    given = merge(given, command.tasks_of_files(task_file or []))
    named = [name for word in [*(tasks or []), *more] for name in word.split(",") if name]
    chosen = {"tasks": named or None, "masks": masks, "dense": dense or None, "out": out}
    given = {"out": "finetuned", **given, **{name: value for name, value in chosen.items() if value is not None}}
    with Steps() as steps:

        def say(line: str) -> None:
            steps.clear()
            text.say(line)

        if multitask:
            from mlpt.downstream.multitask.config import MultitaskConfig
            from mlpt.downstream.multitask.run import run_multitask
            from mlpt.run.saved import resolve_model

            joint = command.settings_from_words(MultitaskConfig, given, data_dir, settings)
            joint = joint.model_copy(update={"model": resolve_model(joint.model, say)})
            with growing_folder(joint.out, MULTITASK, overwrite):
                run_multitask(joint, say=say, show=steps.show)
        else:
            from mlpt.downstream.config import FinetuneConfig
            from mlpt.runtime.finetune import finetune_cells

            cells = command.settings_from_words(FinetuneConfig, given, data_dir, settings)
            asked = {"finetune.yaml": cells.to_yaml()}
            with growing_folder(cells.out, FINE_TUNING, overwrite, asked):
                finetune_cells(cells, workers, say=say, show=steps.show)
