"""From the words of `mlpt study` to the declaration of a study of two moons."""

from collections.abc import Iterable

from mlpt.settings import load_settings, merge, parse_overrides
from mlpt.studies.moons.declaration import MoonsStudy
from mlpt.studies.reading import values_of


def read_moons(name: str, words: Iterable[str] = ()) -> MoonsStudy | None:
    """The shipped study `name`, or the one in the YAML file at that path, with `key=value` words laid on it; None where
    it is not one of two moons (`work: two_moons`). Raises `UserError` as `read_study` does."""
    values, _ = values_of(name)
    if values.get("work") != "two_moons":
        return None
    return load_settings(MoonsStudy, merge(values, parse_overrides(words)))
