"""Digests of what a fine-tuning depends on beside its settings: rows, model and masks, wherever they lie.

A finished result is read back only for equal ones, so that changed files under an old name are never answered with it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from mlpt.downstream.loading import model_folder
from mlpt.errors import UserError
from mlpt.outputs import read_json
from mlpt.sparsity.artefacts import MASK_FILES
from mlpt.tasks import TaskData

# What a model's folder is read for: its shape, its weights, its tokenizer.
_MODEL_FILES = ("config.json", "*.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.*", "merges.txt")
NAMED = "named"  # in a written identity: how model, masks and rows were named
_RENAMED = {"eval_steps": "evaluate_every", "eval_epochs": "evaluate_epochs"}


def rows_digests(data: TaskData, splits: Iterable[str] | None = None) -> dict[str, str]:
    """Split -> digest of its examples, order included; None: all splits. Labels' names and the like count too."""
    task = json.dumps(asdict(data.task), default=str)
    digests = {}
    for split in data.splits if splits is None else splits:
        digest = hashlib.blake2b(task.encode(), digest_size=16)
        for example in data.splits[split]:
            digest.update(repr(example).encode())
        digests[split] = digest.hexdigest()
    return digests


def model_digest(model: str) -> str:
    """Digest of the files of a saved model, or the hub's commit of a hub name."""
    folder = Path(model_folder(model))
    if folder.is_dir():
        files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)} - set(_masks_in(folder)))
        return _digest(files)
    try:
        found = cached_file(model, "config.json", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return model  # whoever loads it says what is wrong
    return f"{model}@{extract_commit_hash(found, None)}"


def masks_digest(masks: str | None) -> str | None:
    """Digest of a mask file, or of the mask files of a folder; None without masks."""
    if masks is None:
        return None
    path = Path(masks)
    return _digest(_masks_in(path) if path.is_dir() else [path] if path.is_file() else [])


def check_same(written: Path, now: Mapping[str, Any], place: str) -> None:
    """Raise `UserError` where the identity in the file `written` is another than `now`; `place` is its, for people."""
    other = differences(read_json(written), now) if written.is_file() else []
    if other:
        raise UserError(
            f"{place} holds a fine-tuning with other settings or data ({', '.join(other)}); choose another "
            "out, or replace it all with --overwrite"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, by the names that people know.

    Rows of splits that one of them lacks don't count, nor does what lies under `NAMED`, for people to read. Earlier
    versions wrote some names otherwise.
    """
    before = {"tokens_per_batch": 16384} | {_RENAMED.get(name, name): value for name, value in before.items()}
    before |= {"precision": "bf16"} if before.get("precision") == "bfloat16" else {}
    rows = [f"rows of {split}" for split in before.get("rows", {}) if _other(before, now, split)]
    aside = ("rows", NAMED)
    named = [name for name in sorted({*before, *now}) if name not in aside and before.get(name) != now.get(name)]
    return [*(["rows"] if "rows" not in before else []), *rows, *named]


def _other(before: Mapping[str, Any], now: Mapping[str, Any], split: str) -> bool:
    return split in now["rows"] and before["rows"][split] != now["rows"][split]


def _masks_in(folder: Path) -> list[Path]:
    return [folder / name for name in MASK_FILES if (folder / name).is_file()]


def _digest(files: Iterable[Path]) -> str:
    """Of names and contents."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()
