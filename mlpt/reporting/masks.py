"""The masks that a run has left: what they keep of each matrix, and how many weights have changed sides."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_MOST = 24  # files that are compared; those of a large model are some megabytes each


@dataclass(frozen=True)
class Masks:
    """kept     step -> fraction kept, by weight name.
    changed  step -> share of all weights that have changed sides since the step compared before, and since the first.
    """

    kept: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    changed: Mapping[int, tuple[float, float]] = field(default_factory=dict)


def read_masks(place: Any, in_full: bool) -> Masks:
    """Of the run at `place` (a `FolderReader` of `records`); `in_full`: with the changes, which reads all files."""
    folders = [f"masks/{name}" for name in place.names("masks")] + ["model"]
    found = {}
    for folder in folders:
        said = place.read_json(f"{folder}/sparsity.json")
        layers, step = said.get("layers"), said.get("step")
        if isinstance(layers, Mapping) and isinstance(step, int):
            found[step] = (folder, {name: float(one["density"]) for name, one in layers.items() if "density" in one})
    found = dict(sorted(found.items()))
    folder_of = {step: folder for step, (folder, _) in found.items()}
    changed = dict(_changes(place, folder_of)) if in_full and len(found) > 1 else {}
    return Masks({step: kept for step, (_, kept) in found.items()}, changed)


def _changes(place: Any, folder_of: Mapping[int, str]) -> Iterator[tuple[int, tuple[float, float]]]:
    steps = list(folder_of)
    chosen = steps if len(steps) <= _MOST else [steps[at] for at in np.linspace(0, len(steps) - 1, _MOST).astype(int)]
    first = before = None
    for step in chosen:
        masks = _bits(place.read(f"{folder_of[step]}/masks.safetensors"))
        if masks is None or (first is not None and masks.keys() != first.keys()):
            continue
        if first is not None and before is not None:
            yield step, (_apart(masks, before), _apart(masks, first))
        first, before = first if first is not None else masks, masks


def _bits(content: bytes | None) -> dict[str, np.ndarray] | None:
    """Packed bits, (ceil(n / 8),) uint8 by weight name; None for a file that is missing or damaged."""
    if content is None:
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(content))
    except SafetensorError:
        return None


def _apart(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """Share of the bits that differ (a matrix whose size is no multiple of 8 has up to 7 more, which never do)."""
    differ = sum(int(np.unpackbits(one[name] ^ other[name]).sum()) for name in one)
    return differ / max(1, sum(8 * len(bits) for bits in one.values()))
