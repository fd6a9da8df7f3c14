"""Making, comparing and exporting sparse subnetworks.

What `mlpt prune` and `mlpt masks` do stands here as functions, imported once they are used: they know of runs, which
nothing else in this package does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpt.api.masks import compare_masks, convert_masks, describe_masks, mask_distances, prune

__all__ = ["compare_masks", "convert_masks", "describe_masks", "mask_distances", "prune"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mlpt.sparsity' has no attribute '{name}'")
    return getattr(import_module("mlpt.api.masks"), name)
