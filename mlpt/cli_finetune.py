"""The command `mlpt finetune`. Parse, call, print; `mlpt.cli` adds it."""

from typing import Annotated

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
    out: Annotated[
        str | None, typer.Option(help="folder or URI for results, predictions and models; default: finetuned")
    ] = None,
    multitask: Annotated[bool, typer.Option("--multitask", help="all tasks at once, one encoder (CA-MTL)")] = False,
    workers: Annotated[int, typer.Option(min=1, help="cells side by side; 1: one after another, without Ray")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a model on labelled tasks: seeds and learning rates of one task, or many tasks at once."""
    from mlpt.api.finetuning import finetune as run
    from mlpt.reporting.text import plain_console
    from mlpt.settings import parse_overrides, split_words

    models, settings = split_words(words)
    if not models:
        raise UserError(f"no model is named, only '{settings[0]}': write mlpt finetune MODEL --tasks sst2")
    model, *more = models
    named = [name for word in [*(tasks or []), *more] for name in word.split(",") if name]
    run(
        model,
        named,
        data_dir=data_dir,
        task_file=task_file or (),
        preset=preset,
        masks=masks,
        dense=dense,
        out=out,
        multitask=multitask,
        workers=workers,
        overwrite=overwrite,
        console=plain_console(),
        settings=parse_overrides(settings),
    )
