"""One-shot masks: magnitude and random pruning, per matrix or over the whole model, with exact counts.

Magnitude: TAMT's initialisation (kthvalue, k = floor(n * sparsity)) and OMP as torch.nn.utils.prune does it
(k = round(n * sparsity)); Liu et al. 2022 and Chen et al. 2020 ("BERT Tickets").
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mlpt.errors import UserError
from mlpt.randomness import numpy_generator

Rounding = Literal["floor", "round"]
Ties = Literal["exact", "published"]
Scope = Literal["local", "global"]


def check_sparsity(sparsity: float) -> float:
    """`sparsity` (the fraction pruned) itself; raises `UserError` unless 0 <= sparsity < 1."""
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity {sparsity} is outside [0, 1): it is the fraction of weights that are pruned")
    return sparsity


def pruned_count(size: int, sparsity: float, rounding: Rounding = "floor") -> int:
    """How many of `size` weights `sparsity` prunes: TAMT takes the floor, torch.nn.utils.prune rounds half to even."""
    check_sparsity(sparsity)
    return int(size * sparsity) if rounding == "floor" else round(size * sparsity)


def lowest(values: Tensor, count: int, ties: Ties = "exact", second: Tensor | None = None) -> Tensor:
    """Bool tensor of the shape of `values`: True at the `count` smallest.

    ties  "exact": exactly `count`; equal values go by `second` (same shape; smaller first), then by position.
          "published": everything up to and including the `count`-th smallest value, as TAMT's kthvalue cut does, which
          may be more than `count`.
    """
    flat = values.detach().reshape(-1)
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    cut = torch.kthvalue(flat, count).values
    if ties == "published":
        return (flat <= cut).view(values.shape)
    below = flat < cut
    missing = count - int(torch.count_nonzero(below))
    tied = (flat == cut).nonzero().squeeze(1)
    if missing < len(tied) and second is not None:
        tied = tied[lowest(second.detach().reshape(-1)[tied], missing)]
    below[tied[:missing]] = True
    return below.view(values.shape)


def magnitude_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    scope: Scope = "local",
    rounding: Rounding = "floor",
    ties: Ties = "exact",
) -> dict[str, Tensor]:
    """Keep the weights of largest magnitude: bool CPU masks (True = kept) by name.

    scope  "local" (as published): `sparsity` in each matrix; "global": over all of them together.
    Raises `UserError` for a bad sparsity, weights that are not finite, or a matrix that would be emptied.
    """
    magnitudes = {name: _magnitude(name, weight) for name, weight in weights.items()}
    return refuse_empty(largest(magnitudes, sparsity, scope, rounding, ties), sparsity)


def largest(
    values: Mapping[str, Tensor], sparsity: float, scope: Scope, rounding: Rounding = "floor", ties: Ties = "exact"
) -> dict[str, Tensor]:
    """Bool masks by name, True at the largest `values`: of magnitudes, or of the importance of heads or neurons."""
    if scope == "local":
        counts = {name: pruned_count(one.numel(), sparsity, rounding) for name, one in values.items()}
        return {name: ~lowest(one, counts[name], ties) for name, one in values.items()}
    joined = torch.cat([one.reshape(-1) for one in values.values()])
    parts = ~lowest(joined, pruned_count(len(joined), sparsity, rounding), ties)
    split = parts.split([one.numel() for one in values.values()])
    return {name: part.view(one.shape) for (name, one), part in zip(values.items(), split, strict=True)}


def random_masks(
    weights: Mapping[str, Tensor], sparsity: float, seed: int, rounding: Rounding = "floor"
) -> dict[str, Tensor]:
    """Prune positions drawn without replacement in each matrix: bool CPU masks (True = kept) by name.

    A matrix's draw follows from the seed and its name alone, whichever other matrices are masked.
    Raises as `magnitude_masks` does.
    """
    masks = {}
    for name, weight in weights.items():
        count = pruned_count(weight.numel(), sparsity, rounding)
        # Ranks of distinct 63-bit draws: as good as a permutation, and several times as fast as one for 23M weights.
        draws = numpy_generator(seed, f"random mask {name}").integers(1 << 62, size=weight.numel())
        masks[name] = ~lowest(torch.from_numpy(draws), count).view(weight.shape)
    return refuse_empty(masks, sparsity)


def refuse_empty(masks: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """`masks` themselves; raises `UserError` naming the first matrix with no weight left."""
    for name, mask in masks.items():
        if not mask.any():
            left_out = f"sparsity {sparsity} leaves none of the {mask.numel()} weights of '{name}'"
            raise UserError(f"{left_out}; lower it, or leave that matrix out of masks.modules")
    return masks


def density(masks: Mapping[str, Tensor]) -> float:
    """The fraction of weights kept over all `masks`."""
    kept = sum(int(torch.count_nonzero(mask)) for mask in masks.values())
    return kept / sum(mask.numel() for mask in masks.values())


def layer_density(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """The fraction of weights kept in each matrix."""
    return {name: int(torch.count_nonzero(mask)) / mask.numel() for name, mask in masks.items()}


def _magnitude(name: str, weight: Tensor) -> Tensor:
    magnitude = weight.detach().float().cpu().abs()
    if not bool(torch.isfinite(magnitude.sum(dtype=torch.float64))):
        raise UserError(f"'{name}' holds numbers that are not finite; a mask cannot be made of it")
    return magnitude
