"""Local paths in settings, as absolute ones: a run, or a sweep, is gone on with from any working folder."""

import glob
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpt.config import RunConfig
from mlpt.data.tokenizers import TRAINED
from mlpt.errors import UserError
from mlpt.settings import load_settings
from mlpt.storage.store import is_uri
from mlpt.yaml_text import read_value

# Settings that name files or folders, of pretraining and of fine-tuning; `*` is any name, or any place in a list. With
# each what names no path there, whatever lies in the working folder.
_PATHS: dict[str, Sequence[str]] = {
    **dict.fromkeys(("data.source", "data.source.*", "data.sources.*", "data.sources.*.*"), ("docs",)),
    "data.tokenizer": TRAINED,
    "meta.target.texts": ("docs",),
    **dict.fromkeys(("blocks", "model", "model.pretrained", "masks", "masks.file"), ()),
    **dict.fromkeys(("objectives.*.scores", "objectives.*.teacher", "objectives.*.distill.teacher"), ()),
    **{
        f"{rows}.{key}": ()
        for rows in ("labelled", "source")
        for key in ("data_dir", "own.*.train", "own.*.dev", "own.*.test")
    },
}
_COPY = "/runtime_resources/working_dir_files/"  # in the path of the copy that Ray makes of a job's working folder
_TASKS = ("tasks", "tasks.*", "meta.target.tasks", "meta.target.tasks.*")  # names of tasks, or files


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """`config` with the local files and folders that it names, and that are there, by their absolute paths; `blocks`
    also where it is yet to be made. In the copy that Ray makes of a job's working folder they stay as they are."""
    values = config.model_dump()
    changed = absolute_paths(values)
    return config if changed == values else load_settings(RunConfig, changed)


def absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same for nested settings. A URI, `~` and the name of something on a hub stay: they mean the same anywhere."""
    return {name: _changed((name,), value) for name, value in values.items()}


def absolute_words(words: Sequence[str]) -> list[str]:
    """The same for words `key=value`."""
    return [_changed_word(word) for word in words]


def _changed_word(word: str) -> str:
    key, _, text = word.partition("=")
    try:
        value = read_value(text, key) if text else None
    except UserError:
        return word  # whoever reads it says what is wrong
    changed = _changed(tuple(key.strip().split(".")), value)
    return word if changed == value else f"{key}={json.dumps(changed, ensure_ascii=False, default=str)}"


def _changed(key: tuple[str, ...], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _changed((*key, str(name)), one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_changed((*key, str(at)), one) for at, one in enumerate(value))
    if not isinstance(value, str):
        return value
    if any(_is_at(key, path) for path in _TASKS):
        return ",".join(_task(one) for one in value.split(","))
    names = next((names for path, names in _PATHS.items() if _is_at(key, path)), None)
    if names is None or value in names or not value or is_uri(value) or value.startswith(("~", "hub:")):
        return value
    is_there = key == ("blocks",) or os.path.exists(value) or any(True for _ in glob.iglob(value, recursive=True))
    return _absolute(value) if is_there else value


def _absolute(place: str) -> str:
    """The absolute path; `place` itself in a job's copy of its working folder, as the next job has one of its own."""
    path = os.path.abspath(place)
    return place if _COPY in path else path


def _is_at(key: Sequence[str], path: str) -> bool:
    parts = path.split(".")
    return len(key) == len(parts) and all(part in ("*", one) for one, part in zip(key, parts, strict=True))


def _task(word: str) -> str:
    path = Path(word.strip())
    return _absolute(str(path)) if path.suffix and path.is_file() else word
