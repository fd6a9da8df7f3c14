"""Named, tested configurations: recipes of `mlpt pretrain RECIPE`, presets of `mlpt finetune --preset NAME`."""

import re
from dataclasses import dataclass
from importlib import resources

from mlpt.errors import UserError

_PRESET = "finetune_"


@dataclass(frozen=True)
class Described:
    """A packaged file: its name, the command that takes it, and the first sentence of what it says of itself."""

    name: str
    command: str
    about: str


def described() -> list[Described]:
    """All of them: recipes, then presets."""
    found = []
    for file in sorted(one.name.removesuffix(".yaml") for one in _files()):
        is_preset = file.startswith(_PRESET)
        command = "mlpt finetune --preset" if is_preset else "mlpt pretrain"
        found.append(Described(file.removeprefix(_PRESET), command, _about(_read(file))))
    return sorted(found, key=lambda one: (one.command != "mlpt pretrain", one.name))


def recipe_text(name: str) -> str:
    """The file of a recipe or preset. Raises `UserError` where there is none of that name."""
    names = [one.name for one in described()]
    if name not in names:
        raise UserError(f"there is no recipe '{name}'; there are {', '.join(names)}")
    files = {one.name.removesuffix(".yaml").removeprefix(_PRESET): one for one in _files()}
    return files[name].read_text(encoding="utf-8")


def _files() -> list[resources.abc.Traversable]:
    return [file for file in resources.files(__name__).iterdir() if file.name.endswith(".yaml")]


def _read(file: str) -> str:
    return (resources.files(__name__) / f"{file}.yaml").read_text(encoding="utf-8")


def _about(text: str) -> str:
    """The first sentence of the comment at the top."""
    lines = [line.lstrip("# ").rstrip() for line in re.match(r"(?:#.*\n)*", text)[0].splitlines()]  # type: ignore[index]
    return re.split(r"(?<=[^.\d][.:])\s", f"{' '.join(lines)} ", maxsplit=1)[0].strip().rstrip(".:")
