"""`mlpt settings` and `mlpt recipes`: what can be set, and what is set already. Parse, call, print."""

from importlib import import_module
from typing import Annotated, Any

import typer

from mlpt.cli_masks import one_of
from mlpt.errors import UserError
from mlpt.reporting.text import say, show_table

# The classes are imported when they are asked for: some of them bring Ray.
TREES = {
    "pretrain": "mlpt.config:RunConfig",
    "prepare": "mlpt.data.config:DataConfig",
    "finetune": "mlpt.downstream.config:FinetuneConfig",
    "multitask": "mlpt.downstream.multitask.config:MultitaskConfig",
    "tune": "mlpt.tuning.sweep:SweepConfig",
}


def settings(
    key: Annotated[str | None, typer.Argument(help="a key or a section, as train.optimizer.lr; default: all")] = None,
    of: Annotated[str, typer.Option(help=f"the command: {', '.join(TREES)}")] = "pretrain",
    json: Annotated[bool, typer.Option("--json", help="print a list of JSON objects instead")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print a table for a page instead")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of a recipe, for editors")] = False,
) -> None:
    """Every setting of a command: key, type, default and meaning."""
    from dataclasses import asdict
    from json import dumps

    from mlpt.setting_list import as_markdown, chosen, schema_of

    if json + markdown + schema > 1:
        raise UserError("give one of --json, --markdown and --schema")
    tree = tree_of(one_of("of", of, tuple(TREES)))
    if schema:
        if key is not None:
            raise UserError("the schema is that of the whole tree; leave the key out")
        say(dumps(schema_of(tree), indent=1), whole=True)
        return
    entries = chosen(tree, key)
    if json:
        say(dumps([asdict(entry) for entry in entries], indent=1), whole=True)
    elif markdown:
        say(as_markdown(entries).rstrip(), whole=True)
    else:
        for entry in entries:
            known = ", ".join(part for part in (entry.type, entry.only_with and f"with {entry.only_with}") if part)
            default = f" = {entry.default}" if entry.default else ""
            say(f"{entry.key}{default}  ({known})")
            if entry.meaning:
                say(f"    {entry.meaning}")


def tree_of(command: str) -> Any:
    """The class that holds the settings of a command."""
    module, _, name = TREES[command].partition(":")
    return getattr(import_module(module), name)


def recipes(
    name: Annotated[str | None, typer.Argument(help="a recipe, to print it; default: a list of all")] = None,
) -> None:
    """The packaged recipes of `mlpt pretrain` and presets of `mlpt finetune`, or one of them in full."""
    from rich.table import Table
    from rich.text import Text

    from mlpt.recipes import described, recipe_text

    if name is not None:
        say(recipe_text(name).rstrip(), whole=True)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "for", "what"):
        table.add_column(heading)
    for one in described():
        table.add_row(*(Text(cell) for cell in (one.name, one.command, one.about)))
    show_table(table, stderr=False)


def complete_recipes(incomplete: str) -> list[str]:
    """For shells: the recipes whose names begin so."""
    from mlpt.recipes import described

    names = [one.name for one in described() if one.command == "mlpt pretrain"]
    return [name for name in names if name.startswith(incomplete)]
