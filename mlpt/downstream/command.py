"""From the words of `mlpt finetune` to its settings."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mlpt.errors import UserError
from mlpt.settings import Settings, load_settings, merge, parse_overrides

S = TypeVar("S", bound=Settings)


def settings_from_words(cls: type[S], given: Mapping[str, Any], data_dir: str | None, words: Iterable[str]) -> S:
    """`cls` from what options gave, the task files' folder, and `key=value` words. Raises `UserError`."""
    values = dict(given)
    if data_dir is not None:
        values["source"] = {"data_dir": data_dir}
    values = merge(values, parse_overrides(words))
    if not values.get("tasks"):
        raise UserError("no task is named; say which, for example --tasks sst2,rte")
    return load_settings(cls, values)
