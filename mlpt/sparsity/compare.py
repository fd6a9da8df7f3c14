"""How alike masks are, how far they move, and whether pretraining loss predicts downstream scores (TAMT, section 5).

Similarity is the Jaccard index of the kept weights, averaged over the matrices without weights.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mlpt.errors import UserError

Pairing = Literal["key", "position"]


@dataclass(frozen=True)
class Similarity:
    """Jaccard index of each matrix (under the first mask's names) and their plain mean."""

    mean: float
    matrices: Mapping[str, float]


def jaccard(first: Tensor, second: Tensor, both_empty: float = 1.0) -> float:
    """|a and b| / |a or b| of two bool tensors of one shape; `both_empty` where neither keeps a weight (0/0)."""
    kept = int(torch.count_nonzero(first)) + int(torch.count_nonzero(second))
    if kept == 0:
        return both_empty
    shared = int(torch.count_nonzero(first & second))
    return shared / (kept - shared)


def similarity(first: Mapping[str, Tensor], second: Mapping[str, Tensor], pairing: Pairing = "key") -> Similarity:
    """Compare two sets of masks.

    pairing  "key": matrices of one name, of which two empty ones are equal (1); "position": in dict order, and NaN for
             two empty ones, both as the published script does.
    Raises `UserError` when they are not masks of one model.
    """
    if pairing == "key" and first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())[0]
        raise UserError(f"the masks are of different models: only one has '{odd}'; try pairing=position")
    if len(first) != len(second):
        raise UserError(f"the masks are of different models: {len(first)} matrices against {len(second)}")
    partners = [second[name] for name in first] if pairing == "key" else list(second.values())
    both_empty = 1.0 if pairing == "key" else math.nan
    matrices = {}
    for (name, mask), partner in zip(first.items(), partners, strict=True):
        if mask.shape != partner.shape:
            shapes = f"{tuple(mask.shape)} against {tuple(partner.shape)}"
            raise UserError(f"the masks are of different models: '{name}' is {shapes}")
        matrices[name] = jaccard(mask, partner, both_empty)
    return Similarity(math.fsum(matrices.values()) / len(matrices), matrices)


@dataclass(frozen=True)
class Comparison:
    """All pairs: `means[i][j]` is the similarity of `names[i]` and `names[j]`; the data of the heat map."""

    names: list[str]
    means: list[list[float]]
    matrices: Mapping[str, Mapping[str, float]]  # "a | b" -> similarity of each matrix

    def to_json(self) -> str:
        """One JSON object: `names`, `means`, `matrices`, and the published `mask_sim` {name: [similarities]}; null for
        NaN, which JSON has not."""
        published = dict(zip(self.names, self.means, strict=True))
        text = json.dumps({**asdict(self), "mask_sim": published})
        return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1)


def compare(masks: Mapping[str, Mapping[str, Tensor]], pairing: Pairing = "key") -> Comparison:
    """Similarity of every pair of the named masks; symmetric with ones on the diagonal."""
    names = list(masks)
    means = [[1.0] * len(names) for _ in names]
    matrices = {}
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            found = similarity(masks[first], masks[names[j]], pairing)
            means[i][j] = means[j][i] = found.mean
            matrices[f"{first} | {names[j]}"] = found.matrices
    return Comparison(names, means, matrices)


def distances(
    reference: Mapping[str, Tensor], later: Sequence[tuple[int, Mapping[str, Tensor]]], pairing: Pairing = "key"
) -> list[dict[str, float]]:
    """Rows {step, similarity, distance = 1 - similarity} from a reference; the published file holds the similarity."""
    rows = []
    for step, masks in later:
        mean = similarity(reference, masks, pairing).mean
        rows.append({"step": step, "similarity": mean, "distance": 1 - mean})
    return rows


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Draw the heat map as an image; needs matplotlib, which mlpt itself does not."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a heat map image needs matplotlib: pip install matplotlib; the JSON has its data") from error
    size = len(comparison.names)
    figure = Figure(figsize=(2 + 0.5 * size, 1.5 + 0.5 * size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(comparison.means, vmin=0, vmax=1)
    axes.set_xticks(range(size), comparison.names, rotation=90)
    axes.set_yticks(range(size), comparison.names)
    figure.colorbar(image, label="Jaccard index of kept weights")
    figure.savefig(path)
