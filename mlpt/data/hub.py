"""Datasets of the Hugging Face hub as local parquet files, through `datasets`."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from filelock import FileLock

from mlpt.data.reach import hub_lookup
from mlpt.errors import UserError
from mlpt.storage.files import cache_directory, one_line, readable_errors


def download(source: str) -> list[Path]:
    """`hub:NAME[:config]` as one parquet file a split, in the user's cache; fetched once.

    NAME may be a dataset of the hub or a local folder that `datasets` understands. Processes that ask for the same one
    wait for the first of them, and a file appears under its name when it is whole. Raises UserError without network,
    for an unknown dataset, or for one without a string column `text`.
    """
    name, _, config = source.removeprefix("hub:").partition(":")
    if not name:
        raise UserError(f"'{source}' names no dataset; write hub:NAME or hub:NAME:config")
    is_local = os.path.isdir(name)
    key = hashlib.blake2b(os.path.abspath(name).encode() if is_local else b"", digest_size=4).hexdigest()
    folder = cache_directory() / "hub" / re.sub(r"[^\w.-]+", "--", f"{name.strip('/')}--{config or 'default'}--{key}")
    complete = folder / "COMPLETE"
    with readable_errors(str(folder), "write"):
        folder.mkdir(parents=True, exist_ok=True)
        if is_local or not complete.exists():
            with FileLock(f"{folder}.lock"):
                if is_local or not complete.exists():
                    _write(_load(source, name, config or None), folder, source)
                    complete.touch()
    return sorted(folder.glob("*.parquet"))


def _write(splits: dict[str, Any], folder: Path, source: str) -> None:
    """Each split as a parquet file, moved into its place when it is whole; files of other splits go."""
    for split, dataset in splits.items():
        kept = [column for column in ("text", "domain") if column in dataset.column_names]
        if "text" not in kept:
            columns = ", ".join(dataset.column_names)
            raise UserError(f"{source} has no column 'text' (it has: {columns}); export it with that column")
        unfinished = folder / f"{split}.unfinished"
        dataset.select_columns(kept).to_parquet(str(unfinished))
        os.replace(unfinished, folder / f"{split}.parquet")
    for path in folder.glob("*.parquet"):
        if path.stem not in splits:
            path.unlink()


def _load(source: str, name: str, config: str | None) -> dict[str, Any]:
    import datasets  # slow to import, and only needed here

    try:
        with hub_lookup(name, source):
            return dict(datasets.load_dataset(name, config))
    except UserError:
        raise
    except Exception as error:  # datasets raises many kinds: no such dataset, no such config, no access
        raise UserError(
            f"cannot load {source} through datasets ({one_line(error)}); check the name and the network, "
            "or give local files"
        ) from error
