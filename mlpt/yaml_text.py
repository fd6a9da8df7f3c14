"""YAML that people write: files and values, each with errors of one line."""

from pathlib import Path
from typing import Any

import yaml

from mlpt.errors import UserError, one_line, reason

_MOST_BITS = 10_000  # of a number: Python writes down none with more than 4,300 digits


class _TwiceError(Exception):
    """A name that stands twice in one mapping: YAML's reader would silently keep the last."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise _TwiceError(f"'{key.value}' twice, again in line {key.start_mark.line + 1}")
            seen |= {name} if name else set()
        return node


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
    value = read_value(content, name)
    check_names(value, name, ": ")
    return value


def read_value(content: bytes | str, name: str) -> Any:
    """The same, with whatever names and values YAML reads."""
    try:
        return _Loader(content).get_single_data()
    except yaml.reader.ReaderError as error:
        why = f"{error.reason} at position {error.position}"
        raise UserError(f"{name} is not UTF-8 text ({why}); save it as UTF-8") from error
    except _TwiceError as error:
        raise UserError(f"{name} gives {error}; keep one") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{name} nests brackets or sections too deeply to be read; flatten it") from error
    except Exception as error:  # whatever Python says of a date that does not exist, of `!!bool maybe`, ...
        raise UserError(f"{name} holds a value that YAML cannot read ({one_line(error)}); quote it") from error


def check_names(value: Any, name: str, separator: str = ".") -> None:
    """Refuse names that YAML has read as true or false, endless numbers, and a value that holds itself.

    separator  stands between `name`, of a file or a key, and the key below.
    """
    done: set[int] = set()  # an alias makes a value stand in several places
    above: set[int] = set()

    def look(value: Any, where: str) -> None:
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise UserError(f"{where} is a number of thousands of digits; give a smaller one")
        if not isinstance(value, dict | list) or id(value) in done:
            return
        if id(value) in above:
            raise UserError(f"{where} holds itself, by an alias (*) of YAML; write it out")
        above.add(id(value))
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, bool):
                words = "'yes' or 'on'" if key else "'no' or 'off'"
                raise UserError(f"{where}: YAML reads a name as {key}; quote it, as in {words}")
            look(inner, f"{where}{separator if where == name else '.'}{key}")
        above.discard(id(value))
        done.add(id(value))

    look(value, name)
