"""Settings are data: typed, immutable, complete when written down, and strict about unknown keys.

Every component has a `Config(Settings)` class beside it; `mlpt.config` joins them into the tree of a run.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mlpt.errors import UserError, one_line, reason
from mlpt.setting_names import hint, settings_in

S = TypeVar("S", bound="Settings")
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*\s*=")
_SHOWN = 80  # characters of a value that an error repeats


class Settings(BaseModel):
    """Base of every configuration class: frozen, no unknown keys, no NaN or infinity, defaults validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _on_defaults(cls, values: Any) -> Any:
        """A mapping for a component is laid on the default of this very field, not on the component's own defaults.

        Fine-tuning's optimiser has other moments than `OptimizerConfig()`; `optimizer.lr=1e-4` keeps them.
        """
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        for name, field in cls.model_fields.items():
            given, default = filled.get(name), field.default
            if isinstance(given, Mapping) and isinstance(default, Settings):
                tag = {"rule": default.rule} if hasattr(default, "rule") else {}
                filled[name] = merge(tag | default.model_dump(exclude_unset=True), given)
        return filled

    def to_yaml(self) -> str:
        """All settings, resolved, as a file that the same command takes."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class Whole(dict[str, Any]):
    """A mapping that takes the place of what it is laid on (see `merge`)."""


def load_settings(cls: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Build `cls` from plain data.

    Raises `UserError` in one line: the dotted key, what is wrong with it, and for an unknown key the nearest valid one.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_one_line(cls, error, where)) from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; a `Whole` one replaces what is there.

    A mapping whose `rule` (the name of a component) changes starts anew: another component's settings don't fit.
    """
    merged = Whole(base) if isinstance(base, Whole) else dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not isinstance(value, Whole):
            another_component = "rule" in value and value["rule"] != old.get("rule", value["rule"])
            merged[key] = dict(value) if another_component else merge(old, value)
        else:
            merged[key] = value
    return merged


def split_words(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words that are names, paths or texts, and those that are `key=value` settings.

    A word with an equals sign is a path if it is one that exists, or if what stands before the sign is no key.
    """
    names: list[str] = []
    settings: list[str] = []
    for word in words:
        (settings if _is_setting(word) else names).append(word)
    return names, settings


def _is_setting(word: str) -> bool:
    return _KEY.match(word) is not None and not os.path.lexists(word)


def read_yaml(file: Path, name: str | None = None) -> Any:
    """What a user's YAML file holds; `name` is what they call it. Raises `UserError` as `parse_yaml` does."""
    name = str(file) if name is None else name
    try:
        return parse_yaml(file.read_bytes(), name)
    except OSError as error:
        raise UserError(f"cannot read {name}: {reason(error)}") from error


def parse_yaml(content: bytes | str, name: str) -> Any:
    """The value that `content` is, bytes in UTF-8 or with the mark of UTF-16.

    Raises `UserError` in one line, which begins with `name`, where it is none.
    """
    try:
        return yaml.safe_load(content)
    except yaml.reader.ReaderError as error:
        why = f"{error.reason} at position {error.position}"
        raise UserError(f"{name} is not UTF-8 text ({why}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{name} nests brackets or sections too deeply to be read; flatten it") from error
    except Exception as error:  # whatever Python says of a date that does not exist, of `!!bool maybe`, ...
        raise UserError(f"{name} holds a value that YAML cannot read ({one_line(error)}); quote it") from error


def parse_overrides(words: Iterable[str], whole: Collection[str] = ()) -> dict[str, Any]:
    """`["train.steps=200", "objectives=[mlm, cse]"]` as a nested mapping; values are YAML.

    whole  keys whose mapping replaces the recipe's: `objectives={mlm: {}}` names all there are, whereas
           `objectives.mlm.probability=0.3` changes one of them.
    """
    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise UserError(f"'{word}' is not a setting: write key=value, for example train.steps=200")
        try:
            value: Any = _number(parse_yaml(text, key)) if text else None
        except UserError as error:
            shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
            raise UserError(f"the value of {key} cannot be read as YAML: {shown}; quote it") from error
        if key.strip() in whole and isinstance(value, Mapping):
            value = Whole(value)
        overrides = merge(overrides, nested({key.strip(): value}))
    return overrides


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train.steps": 200}` as `{"train": {"steps": 200}}`; later keys are laid on earlier ones."""
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 (no dot) as text; people mean the number."""
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _one_line(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    found = error.errors()
    unknown = [one for one in found if one["type"] == "extra_forbidden"]  # may be why another one is missing
    first = (unknown or found)[0]
    path, known = _walk(cls, [str(part) for part in first["loc"]])
    prefix = f"{where}." if where else ""
    key = prefix + ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown setting '{key}'; {hint(cls, path, known, prefix)}"
    message = _message(first)
    return f"setting '{key.rstrip('.')}': {message}" if key else message


def _message(error: Any) -> str:
    """What pydantic found, in the words of people who write settings."""
    kind, given = error["type"], error["input"]
    if kind == "missing":
        return "has no default; give it"
    if kind == "union_tag_invalid":
        valid = error["ctx"]["expected_tags"].replace("'", "")
        return f"there is no {_discriminator(error)} '{error['ctx']['tag']}'; there are {valid}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"needs settings of its own, as in {{key: value}} (got {given!r})"
    text = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").replace("\n", " ")
    return text if kind == "value_error" else f"{text} (got {given!r})"


def _discriminator(error: Any) -> str:
    return str(error["ctx"]["discriminator"]).strip("'")


def _walk(cls: type[BaseModel], location: list[str]) -> tuple[list[str], list[str]]:
    """The keys that a person writes to get to `location`, and the valid ones beside the last of them.

    Pydantic names the member of a union between two keys (by its `rule` or its type); people don't write that.
    """
    written: list[str] = []
    here: list[type[BaseModel]] = [cls]
    beside: list[str] = []
    for number, part in enumerate(location):
        last = number == len(location) - 1
        tagged = [one for one in here if _tag(one) == part]
        if tagged and not last:
            here = tagged
            continue
        beside = sorted({key for one in here for key in one.model_fields})
        deeper = [
            found
            for one in here
            if part in one.model_fields
            for found in settings_in(one.model_fields[part].annotation)
        ]
        if part in beside or part.isdigit() or last:
            written.append(part)
        here = deeper or here
    return written, beside


def _tag(cls: type[BaseModel]) -> Any:
    field = cls.model_fields.get("rule")
    return None if field is None else field.default
