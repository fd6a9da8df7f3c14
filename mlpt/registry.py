"""Open registries: a component is named by its short name, or as `package.module:Class` if a user brings it."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from mlpt.errors import UserError

T = TypeVar("T")


def find_class(name: str, registered: Mapping[str, type[T]], base: type[T], kind: str) -> type[T]:
    """The class called `name`: one of `registered`, or a subclass of `base` named `package.module:Class`.

    kind  what people call such a thing, for the message. Raises `UserError` in one line.
    """
    if name in registered:
        return registered[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, registered, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(registered)}"
        raise UserError(f"there is no {kind} '{name}'; {hint} (your own: package.module:Class)")
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{kind} '{name}': cannot import {module} ({error}); is it on PYTHONPATH?") from error
    except Exception as error:  # whatever a module of the user's does when it is imported
        reason = " ".join(str(error).split()) or "no reason given"
        raise UserError(f"{kind} '{name}': cannot import {module} ({type(error).__name__}: {reason})") from error
    found: Any = getattr(imported, attribute, None)
    if found is None:
        raise UserError(f"{kind} '{name}': {module} has no {attribute}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{kind} '{name}' is not a subclass of {base.__module__}.{base.__qualname__}")
    return found
