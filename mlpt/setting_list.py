"""Every key of a tree of settings with its type, default and meaning, read from the classes: `mlpt settings`."""

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mlpt.errors import UserError
from mlpt.setting_names import docstring_entries, hint, settings_in

_TYPES = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "anything"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class Entry:
    """One key: its type and default in words, and its meaning; empty where the class says nothing.

    only_with  what must be chosen for the key to exist, such as `rule: exp3`; empty for most keys.
    is_section  True for a key that holds others.
    """

    key: str
    type: str
    default: str
    meaning: str
    only_with: str = ""
    is_section: bool = False


def entries_of(cls: type[BaseModel], prefix: str = "", only_with: str = "") -> Iterator[Entry]:
    """All keys below `cls`, sections before what stands in them."""
    described = docstring_entries(cls)
    for name, field in cls.model_fields.items():
        key, inner = f"{prefix}{name}", settings_in(field.annotation)
        meaning = " ".join((field.description or described.get(name, "")).split())
        kind = "section" if inner else _type(field)
        yield Entry(key, kind, _default(field, bool(inner)), meaning, only_with, bool(inner))
        for one in inner:
            yield from entries_of(one, f"{key}.", _choice(one) if len(inner) > 1 else only_with)
    named = getattr(cls, "settings_by_name", None)
    for name, several in named().items() if named is not None else ():
        for one in several:
            yield from entries_of(one, f"{prefix}{name}.", _choice(one) if len(several) > 1 else only_with)


def chosen(cls: type[BaseModel], key: str | None) -> list[Entry]:
    """The entries at and below `key`; all for None. Raises `UserError` for a key that there is not."""
    entries = list(entries_of(cls))
    if key is None:
        return entries
    found = [entry for entry in entries if entry.key == key or entry.key.startswith(f"{key}.")]
    if not found:
        sections = sorted({entry.key.split(".")[0] for entry in entries})
        raise UserError(f"there is no setting '{key}'; {hint(cls, key.split('.'), sections)}")
    return found


def schema_of(cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a recipe. Where a class stands for all that inherit from it, such as a rule of the user's own,
    it allows their keys."""
    schema = cls.model_json_schema()
    for one in _classes_in(cls):
        if one.__subclasses__() and one.__name__ in schema.get("$defs", {}):
            schema["$defs"][one.__name__]["additionalProperties"] = True
    return schema


def _classes_in(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in cls.model_fields.values():
        for one in settings_in(field.annotation):
            yield one
            yield from _classes_in(one)


def as_markdown(entries: Sequence[Entry]) -> str:
    """A table, a line an entry."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for entry in entries:
        meaning = f"({entry.only_with}) {entry.meaning}" if entry.only_with else entry.meaning
        cells = (f"`{entry.key}`", entry.type, f"`{entry.default}`" if entry.default else "", meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _choice(cls: type[BaseModel]) -> str:
    for name in ("rule", "type"):
        if name in cls.model_fields and cls.model_fields[name].default is not PydanticUndefined:
            return f"{name}: {cls.model_fields[name].default}"
    return cls.__qualname__.removesuffix(".Config")


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(one, name):g}"
        for one in field.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(one, name)
    ]
    words = _words(field.annotation)
    return f"{words}, {' and '.join(bounds)}" if bounds else words


def _words(annotation: Any) -> str:
    """A type as people say it."""
    if annotation in _TYPES:
        return _TYPES[annotation]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(inner[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(one) for one in inner))
    if origin in (list, tuple, set, frozenset):
        items = [one for one in inner if one is not Ellipsis]
        return f"list of {' and '.join(dict.fromkeys(_words(one) for one in items)) or 'anything'}"
    if origin is dict or origin is Mapping:
        return f"mapping to {_words(inner[1])}"
    value = getattr(annotation, "__value__", None)  # a named alias
    return _words(value) if value is not None else getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo, is_section: bool) -> str:
    if field.is_required():
        return ""
    if is_section:
        return "null" if field.default is None else ""
    if field.default_factory is not None and field.default_factory_takes_validated_data:
        return "from others"
    value = field.get_default(call_default_factory=True)
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value
