"""Datasets of the Hugging Face hub as local parquet files, through `datasets`."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from mlpt.data.files import cache_directory, one_line
from mlpt.errors import UserError


def download(source: str) -> list[Path]:
    """`hub:NAME[:config]` as one parquet file a split, in the user's cache; fetched once.

    NAME may be a dataset of the hub or a local folder that `datasets` understands. Raises UserError without network,
    for an unknown dataset, or for one without a string column `text`.
    """
    name, _, config = source.removeprefix("hub:").partition(":")
    if not name:
        raise UserError(f"'{source}' names no dataset; write hub:NAME or hub:NAME:config")
    key = hashlib.blake2b(os.path.abspath(name).encode() if os.path.isdir(name) else b"", digest_size=4).hexdigest()
    folder = cache_directory() / "hub" / re.sub(r"[^\w.-]+", "--", f"{name.strip('/')}--{config or 'default'}--{key}")
    if not (folder / "COMPLETE").exists() or os.path.isdir(name):
        splits = _load(source, name, config or None)
        folder.mkdir(parents=True, exist_ok=True)
        for split, dataset in splits.items():
            kept = [column for column in ("text", "domain") if column in dataset.column_names]
            if "text" not in kept:
                columns = ", ".join(dataset.column_names)
                raise UserError(f"{source} has no column 'text' (it has: {columns}); export it with that column")
            dataset.select_columns(kept).to_parquet(str(folder / f"{split}.parquet"))
        (folder / "COMPLETE").touch()
    return sorted(folder.glob("*.parquet"))


def _load(source: str, name: str, config: str | None) -> dict[str, Any]:
    import datasets  # slow to import, and only needed here

    try:
        return dict(datasets.load_dataset(name, config))
    except Exception as error:  # datasets raises many kinds: no network, no such dataset, no such config, no access
        raise UserError(
            f"cannot load {source} through datasets ({one_line(error)}); check the name and the network, "
            "or give local files"
        ) from error
