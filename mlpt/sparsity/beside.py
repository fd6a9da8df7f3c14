"""Masks that lie beside a model's weights, as a masked run leaves them: of single weights, or of heads and neurons."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpt.errors import UserError
from mlpt.sparsity.artefacts import MASKS_FILE, MaskFile, load_masks
from mlpt.sparsity.structured import GROUP_FILES, Kind, group_count, load_group_mask, readers


def masks_beside(folder: str | Path) -> str | None:
    """`folder` itself if it holds a model's own masks, for `read_masks`; None for any other folder and a hub name."""
    names = (MASKS_FILE, *GROUP_FILES.values())
    return str(folder) if any((Path(folder) / name).is_file() for name in names) else None


def groups_beside(folder: str | Path) -> dict[Kind, Tensor]:
    """The structured masks in `folder`: kind -> bool (layers, groups), True = kept; empty where there are none."""
    return {
        kind: load_group_mask(file) for kind, name in GROUP_FILES.items() if (file := Path(folder) / name).is_file()
    }


def read_masks(path: str | Path, model: Any) -> MaskFile:
    """The masks at `path` (a mask file, a folder that holds one, a head or neuron mask) as masks of `model`'s weights.

    A pruned head or neuron is a pruned column of the layer that reads it: nothing it computes gets any further, so the
    outputs are those of the structured mask. Raises `UserError` as `load_masks` and `load_group_mask` do.
    """
    source = Path(path)
    groups = groups_beside(source) if source.is_dir() else {}
    if source.suffix == ".npy":
        mask = load_group_mask(source)
        groups = {"heads" if mask.shape[1] == group_count(model, "heads") else "neurons": mask}
    if not groups:
        return load_masks(source)
    masks: dict[str, Tensor] = {}
    for kind, kept in groups.items():
        masks |= _columns(model, kind, kept)
    return MaskFile.of(masks, f"structured: {' and '.join(groups)}")


def _columns(model: Any, kind: Kind, kept: Tensor) -> dict[str, Tensor]:
    """Weight name of each layer's reader -> (out, in) bool."""
    named, groups = readers(model, kind), group_count(model, kind)
    if tuple(kept.shape) != (len(named), groups):
        expected = (len(named), groups)
        raise UserError(f"the {kind} mask is {tuple(kept.shape)} and the model has {expected} (layers, {kind})")
    columns = {}
    for (name, reader), row in zip(named.items(), kept, strict=True):
        wide = row.repeat_interleave(reader.in_features // groups)  # (in,)
        columns[f"{name}.weight"] = torch.broadcast_to(wide, reader.weight.shape).clone()
    return columns
