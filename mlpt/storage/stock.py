"""Reading a saved stock model whose weights must be those that its configuration describes."""

import os
from pathlib import Path
from typing import Any

import torch

from mlpt.errors import UserError

COMPACT_FILE = "compact.json"  # of an export whose layers have sizes that no stock configuration can say


def read_stock(
    auto: Any, name: str | os.PathLike[str], any_head: bool = False, **options: Any
) -> tuple[Any, list[str]]:
    """The float32 model that `auto` reads from the folder or hub name `name`, and its weights that were drawn anew.

    any_head  the head is for another task: weights of it that have other sizes there are drawn anew, too.
    Never reads a pickle. Raises `UserError` where weights have sizes that the configuration does not say, and what
    transformers raises.
    """
    if (Path(name) / COMPACT_FILE).is_file():
        raise UserError(
            f"{name} is exported with layers of different sizes, which mlpt.sparsity.export.load_compact alone reads; "
            "give the model that it was exported from, under its masks"
        )
    model, report = auto.from_pretrained(
        name,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # transformers would tell them in a table
        **options,
    )
    body = "" if model.base_model is model else f"{model.base_model_prefix}."
    for key, saved, wanted in sorted(report["mismatched_keys"]):
        if not any_head or key.startswith(body):
            raise UserError(
                f"the weights in {name} do not fit its config.json ({key} is {tuple(saved)} and would be "
                f"{tuple(wanted)}); export or save that model again"
            )
    return model, sorted({*report["missing_keys"], *(key for key, _, _ in report["mismatched_keys"])})
