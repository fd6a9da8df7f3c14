"""Settings are data: typed, immutable, complete when written down, and strict about unknown keys.

Every component has a `Config(Settings)` class beside it; `mlpt.config` joins them into the tree of a run.
"""

import os
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlpt.errors import UserError
from mlpt.setting_names import hint
from mlpt.yaml_text import check_names, read_value

S = TypeVar("S", bound="Settings")
Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Decay, Decay]  # of the two moments of Adam and its kin
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*\s*=")
_MOST_SHOWN = 100  # characters of a value that an error repeats
_NO_MAPPING = "needs settings of its own, as in {key: value}"
_A_KEY = "[key]"  # in pydantic's locations: it is the key itself that is wrong


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
    if not isinstance(values, Mapping):
        raise UserError(f"setting '{where}': {_NO_MAPPING} (got {_shown(values)})")
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
            value: Any = _number(read_value(text, key)) if text else None
        except UserError as error:
            raise UserError(f"the value of {key} cannot be read as YAML: {_shown(text)}; quote it") from error
        check_names(value, key.strip())
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
    found = [(*_walk(cls, _location(one)), one) for one in error.errors()]
    unknown = [one for one in found if one[2]["type"] == "extra_forbidden"]  # may be why another one is missing
    path, known, first = (unknown or found)[0]
    prefix = f"{where}." if where else ""
    if unknown:
        return f"unknown setting '{prefix}{'.'.join(path)}'; {hint(cls, path, known, prefix)}"
    # Where a value may be of several kinds, each kind has its complaint: the one that got furthest into it was meant.
    same = [one for one in found if one[0][: len(path)] == path]
    path, _, first = max(same, key=_how_far)
    key, message = prefix + ".".join(path), _message(first)
    return f"setting '{key.rstrip('.')}': {message}" if key else message


def _how_far(found: tuple[list[str], list[str], Any]) -> tuple[int, bool, bool]:
    path, _, error = found
    return len(path), _location(error)[-1:] == (_A_KEY,), not error["type"].endswith("_type")


def _location(error: Any) -> Sequence[str | int]:
    """Pydantic's, with the same mark of a wrong name in settings as in mappings."""
    place: tuple[str | int, ...] = error["loc"]
    return (*place, _A_KEY) if error["type"] == "invalid_key" else place


def _message(error: Any) -> str:
    """What pydantic found, in the words of people who write settings."""
    kind, given = error["type"], error["input"]
    if kind == "missing":
        return "has no default; give it"
    if kind == "union_tag_invalid":
        valid = error["ctx"]["expected_tags"].replace("'", "")
        return f"there is no {_discriminator(error)} '{error['ctx']['tag']}'; there are {valid}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{_NO_MAPPING} (got {_shown(given)})"
    if _location(error)[-1:] == (_A_KEY,):
        return f"YAML reads a name as {_shown(given)}, and names are texts; quote it"
    if kind in ("tuple_type", "list_type"):
        return f"needs a list, as in [a, b] (got {_shown(given)})"
    text = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").replace("\n", " ")
    text = text.replace(" after validation", "")
    if kind == "string_type" and isinstance(given, bool | int | float | date):
        as_text = "no" if isinstance(given, bool) else given
        return f"{text} (got {_shown(given)}); quote it for YAML, on a command line as '\"{as_text}\"'"
    return text if kind == "value_error" else f"{text} (got {_shown(given)})"


def _shown(value: Any) -> str:
    """A value as an error repeats it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: of a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _discriminator(error: Any) -> str:
    return str(error["ctx"]["discriminator"]).strip("'")


def _walk(cls: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], list[str]]:
    """The keys that a person writes to get to `location`, and the valid ones beside the last of them.

    Where a value may be of several kinds, pydantic names the one it has tried (by its `rule` or its type) between two
    keys, and it marks what is wrong with a key itself; people write neither.
    """
    written: list[str] = []
    here: list[Any] = [cls]
    beside: list[str] = []
    named = False  # the kind that `here` is
    for part in map(str, location):
        if part == _A_KEY:
            return written[:-1], beside
        if len(here) > 1 and not named:
            here, named = [kind for kind in here if _is_named(kind, part)], True
            continue
        beside = sorted({key for kind in here for key in getattr(kind, "model_fields", ())})
        written.append(part)
        here = [inner for kind in here for child in _inside(kind, part) for inner in _kinds(child)]
        named = False
    return written, beside


def _kinds(annotation: Any) -> list[Any]:
    """What a value of this type may be, but for None."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _kinds(inner[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for one in inner if one is not type(None) for kind in _kinds(one)]
    return [annotation]


def _is_named(kind: Any, name: str) -> bool:
    """Whether pydantic calls the type `kind` so: by its `rule`, by its name, or as in `dict[str,float]`."""
    own = getattr(typing.get_origin(kind) or kind, "__name__", "")
    return _tag(kind) == name or name.removeprefix("constrained-").partition("[")[0] == own.lower() or name == own


def _inside(kind: Any, part: str) -> list[Any]:
    """The type of what stands at `part` in a value of the type `kind`; none where that is unknown."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind.model_fields[part].annotation] if part in kind.model_fields else []
    inner = [one for one in typing.get_args(kind) if one is not ...]
    if typing.get_origin(kind) is tuple and part.isdigit():
        return inner[int(part) : int(part) + 1] or inner[:1]
    return inner[-1:]


def _tag(kind: Any) -> Any:
    field = getattr(kind, "model_fields", {}).get("rule")
    return None if field is None else field.default
