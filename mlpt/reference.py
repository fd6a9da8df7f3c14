"""The pages docs/SETTINGS.md and docs/COMMANDS.md, made from the classes and the commands: `python -m mlpt.reference`.

A test makes them anew and compares, so that neither can say what the code does not.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from mlpt.cli import app
from mlpt.cli_settings import TREES, tree_of
from mlpt.setting_list import as_markdown, entries_of

_ABOUT = {
    "pretrain": "`mlpt pretrain`: a recipe, or words `key=value`",
    "prepare": "`mlpt prepare`: words `key=value`; the section `data` of `mlpt pretrain`",
    "finetune": "`mlpt finetune`",
    "multitask": "`mlpt finetune --multitask`",
    "tune": "`mlpt tune`: words `sweep.key=value`; all others are settings of the trials",
}
_SETTINGS = """# Settings

Made from the configuration classes by `python -m mlpt.reference`. `mlpt settings KEY` shows the same in a terminal,
`mlpt settings --schema` is a JSON schema for editors.
"""
_COMMANDS = """# Commands

Made from the commands by `python -m mlpt.reference`. Exit codes: 0 done; 2 one line on standard error says what is
wrong; 130 and 143 stopped by Ctrl-C or SIGTERM; 1 `mlpt doctor` found what will not work. `mlpt --debug COMMAND` shows
tracebacks.
"""


def pages() -> dict[str, str]:
    """The text of each page by its name in docs/."""
    return {"SETTINGS.md": _settings(), "COMMANDS.md": _commands()}


def _settings() -> str:
    parts = [_SETTINGS]
    for command in TREES:
        parts.append(f"## {_ABOUT[command]}\n\n{as_markdown(list(entries_of(tree_of(command))))}")
    return "\n".join(parts)


def _commands() -> str:
    return "\n".join([_COMMANDS, *_below(typer.main.get_command(app), "mlpt")])


def _below(group: Any, path: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _below(command, f"{path} {name}")
        else:
            yield _command(command, f"{path} {name}")


def _command(command: Any, path: str) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = " ".join(_metavar(one) for one in shown if one.param_type_name == "argument")
    rows = [f"- `{_named(one)}`: {' '.join((one.help or '').split())}{_default(one)}" for one in shown]
    about = " ".join((command.help or "").split())
    listed = "\n" + "\n".join(rows) + "\n" if rows else ""
    return f"## {' '.join([path, *filter(None, [arguments])])}\n\n{about}\n{listed}"


def _named(parameter: Any) -> str:
    return _metavar(parameter) if parameter.param_type_name == "argument" else ", ".join(parameter.opts)


def _metavar(parameter: Any) -> str:
    return parameter.metavar or (parameter.name or "").upper()


def _default(parameter: Any) -> str:
    default = parameter.default
    return (
        f" (default: {default})" if isinstance(default, str | int | float) and default not in (False, "", True) else ""
    )


def main(folder: str = "docs") -> None:
    """Write the pages."""
    for name, text in pages().items():
        (Path(folder) / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
