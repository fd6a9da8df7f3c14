"""The suites by name, and measuring models by them: models and `--suite` words in, plain values out."""

import difflib
import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlpt.downstream.cloze import Cloze
from mlpt.downstream.pair_accuracy import MinimalPairs
from mlpt.downstream.probes import DomainProbe, TaskProbe, WordProbe
from mlpt.downstream.subject import load_subject
from mlpt.downstream.suite import Suite
from mlpt.downstream.suite_report import over_models
from mlpt.errors import UserError, one_line
from mlpt.models.quiet import quiet
from mlpt.settings import load_settings, merge, parse_overrides
from mlpt.tasks import TASKS

SUITES: dict[str, type[Suite]] = {
    "blimp": MinimalPairs,
    "zorro": MinimalPairs,
    "pairs": MinimalPairs,
    "cloze": Cloze,
    "pos": WordProbe,
    "domains": DomainProbe,
    "task": TaskProbe,
}

# What a suite reads where no data is named.
_DATA = {"blimp": "hub:nyu-mll/blimp"}

Show = Callable[[str, int, int], None]  # (what is being done, done, of all), as `mlpt.reporting.steps.Steps.show`
Values = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """A suite that was asked for: its name there, its class, and the settings that its name and data imply."""

    name: str
    suite: type[Suite]
    settings: dict[str, Any]


def choose_suites(words: Iterable[str]) -> list[Chosen]:
    """`["blimp=FILE,zorro=FOLDER", "docs_package"]` as suites, in that order.

    A suite is a name of SUITES, the name of a labelled task (its probe), or `package.module:Class`; what stands behind
    its first = is its data. Raises `UserError` for an unknown suite and one that is named twice.
    """
    chosen: list[Chosen] = []
    for part in (part.strip() for word in words for part in word.split(",")):
        name, _, data = part.partition("=")
        suite, implied = _find(name)
        label = suite.__name__.lower() if ":" in name else name
        if any(one.name == label for one in chosen):
            raise UserError(f"suite '{label}' is named twice; measure its other data by another command")
        chosen.append(Chosen(label, suite, implied | ({"data": data} if data else {})))
    return chosen


def build_suites(chosen: Sequence[Chosen], settings: Iterable[str] | Mapping[str, Any] = ()) -> dict[str, Suite]:
    """The suites with their data read. `settings`: `SUITE.KEY=VALUE` words, or the same as nested mappings.

    Raises `UserError` for settings of a suite that wasn't chosen, unknown keys, and bad data, by the suite's name.
    """
    given = settings if isinstance(settings, Mapping) else parse_overrides(settings)
    names = [one.name for one in chosen]
    for name, values in given.items():
        if name not in names or not isinstance(values, Mapping):
            raise UserError(f"'{name}' is no setting of the suites {', '.join(names)}; write SUITE.KEY=VALUE")
    configs = {
        one.name: load_settings(one.suite.Config, merge(one.settings, given.get(one.name, {})), one.name)
        for one in chosen
    }
    suites = {}
    for one in chosen:
        try:
            suites[one.name] = one.suite(configs[one.name])
        except UserError as error:
            raise UserError(f"suite '{one.name}': {error}") from error
    return suites


def measure(
    models: Mapping[str, str],
    suites: Mapping[str, Suite],
    show: Show,
    masks: str | None = None,
    dense: bool = False,
) -> Iterator[dict[str, Values]]:
    """The results so far, each time one model has been measured by one suite: plain values by the suite's name.

    models  name -> folder or hub name; `masks` and `dense` as in `load_subject`.
    A result is {"settings", "models": {model: {"lines", "notes", "masks", "precision", "device", "seconds"}},
    "over_models"}. Raises `UserError` before anything is scored where a model can't be loaded.
    """
    needs_head = any(suite.needs_head for suite in suites.values())
    for folder in list(models.values())[1:]:  # a model that can't be loaded must not cost the work on the first
        load_subject(folder, masks, dense, needs_head=needs_head)
    results: dict[str, Values] = {
        name: {"settings": suite.config.model_dump(mode="json"), "models": {}} for name, suite in suites.items()
    }
    for model, folder in models.items():
        subject = load_subject(folder, masks, dense, model, needs_head)
        for name, suite in suites.items():
            start = time.perf_counter()
            try:
                with quiet():
                    result = suite.measure(subject, partial(_percent, show, f"{name} of {model}"))
            except UserError as error:
                raise UserError(f"suite '{name}': {error}") from error
            measured = results[name]["models"]
            measured[model] = result.to_json() | {
                "masks": subject.masks,
                "precision": subject.resolved(suite.config.precision),
                "device": subject.device.type,
                "seconds": time.perf_counter() - start,
            }
            results[name]["over_models"] = over_models(list(measured.values()))
            yield results


def _percent(show: Show, what: str, done: int, total: int) -> None:
    show(what, 100 * done // max(1, total), 100)


def _find(name: str) -> tuple[type[Suite], dict[str, Any]]:
    if name in SUITES:
        return SUITES[name], {"data": _DATA[name]} if name in _DATA else {}
    if name in TASKS:
        return TaskProbe, {"task": name}
    module, colon, attribute = name.partition(":")
    if not colon:
        known = [*SUITES, *TASKS]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(SUITES)}, and every labelled task"
        raise UserError(f"there is no suite '{name}'; {hint}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # it is somebody's own code
        raise UserError(
            f"cannot import the suite {name} ({one_line(error)}); is its package installed or on PYTHONPATH?"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Suite)):
        raise UserError(f"{name} is no suite: it must be a subclass of mlpt.downstream.suite.Suite")
    return found, {}
