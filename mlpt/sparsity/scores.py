"""Starting scores of trainable masks, and the thresholds that bring them back to an exact sparsity.

TAMT (Liu et al. 2022), `controlled_init` and `reset_threshold`: kept weights start at 2 * theta0, pruned ones at 0;
from then on each matrix's own threshold is its k-th smallest score, k = floor(n * sparsity).
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlpt.errors import UserError
from mlpt.models.masked import THETA, Masked, masked_modules
from mlpt.randomness import numpy_generator
from mlpt.sparsity.making import Ties, check_sparsity, lowest, magnitude_masks, pruned_count, random_masks
from mlpt.sparsity.structured import kind_of

Init = Literal["magnitude", "random", "magnitude_and_random", "double_uniform", "free"]


def scores_of_mask(mask: Tensor) -> Tensor:
    """float32 scores that reproduce `mask` at theta0: 0.02 where kept, 0 where pruned."""
    return mask.float() * (2 * THETA)


def initial_scores(
    weights: Mapping[str, Tensor], sparsity: float, init: Init = "magnitude", seed: int = 0, ties: Ties = "published"
) -> dict[str, Tensor]:
    """float32 CPU scores by weight name.

    init  "magnitude": of the largest weights of each matrix. "random" (published as `uniform`): of random positions.
          "magnitude_and_random": magnitude inside the encoder body (a name with "bert"), random elsewhere.
          "double_uniform": kept U(1.1, 1.5) * theta0, pruned U(0.5, 0.9) * theta0, positions drawn without replacement
          (the published code draws them with replacement and so prunes too little).
          "free": U(-0.02, 0.03 / sparsity - 0.02), whose expected sparsity is the target.
    ties  see `lowest`; TAMT's initialisation cuts at |W| > the k-th value ("published").
    """
    check_sparsity(sparsity)
    if init == "magnitude":
        return _of_masks(magnitude_masks(weights, sparsity, ties=ties))
    if init == "random":
        return _of_masks(random_masks(weights, sparsity, seed))
    if init == "magnitude_and_random":
        in_body = {name: weight for name, weight in weights.items() if "bert" in name}
        outside = {name: weight for name, weight in weights.items() if "bert" not in name}
        made = magnitude_masks(in_body, sparsity, ties=ties) | random_masks(outside, sparsity, seed)
        return _of_masks({name: made[name] for name in weights})
    draw = _double_uniform if init == "double_uniform" else _free
    return {
        name: draw(weight, sparsity, numpy_generator(seed, f"{init} scores {name}")) for name, weight in weights.items()
    }


def _of_masks(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: scores_of_mask(mask) for name, mask in masks.items()}


def _double_uniform(weight: Tensor, sparsity: float, generator: np.random.Generator) -> Tensor:
    scores = generator.uniform(1.1 * THETA, 1.5 * THETA, weight.numel()).astype(np.float32)
    count = pruned_count(weight.numel(), sparsity)
    pruned = generator.permutation(weight.numel())[:count]
    scores[pruned] = generator.uniform(0.5 * THETA, 0.9 * THETA, count)
    return torch.from_numpy(scores).view(weight.shape)


def _free(weight: Tensor, sparsity: float, generator: np.random.Generator) -> Tensor:
    if sparsity == 0:
        raise UserError("init 'free' needs a sparsity above 0; use 'magnitude'")
    high = (2 * THETA + THETA) / sparsity - 2 * THETA
    return torch.from_numpy(generator.uniform(-2 * THETA, high, weight.numel()).astype(np.float32)).view(weight.shape)


@torch.no_grad()
def exact_threshold(scores: Tensor, count: int, ties: Ties = "exact", second: Tensor | None = None) -> Tensor:
    """theta (a scalar tensor) for which the `count` smallest scores are pruned.

    ties  "published": the k-th smallest score alone; all that equals it is pruned too, in the extreme the whole matrix.
          "exact": scores that equal theta and must stay are raised, in place, to the next float above it, so that
          exactly `count` are pruned; tied ones go by `second` (the weights' magnitudes), then by position.
    """
    if count == 0:
        return torch.full((), -torch.inf, dtype=scores.dtype, device=scores.device)
    theta = torch.kthvalue(scores.reshape(-1), count).values
    if ties == "exact" and int((scores <= theta).sum()) > count:
        spared = (scores == theta) & ~lowest(scores, count, "exact", second)
        scores[spared] = torch.nextafter(theta, torch.full_like(theta, torch.inf))
    return theta


@torch.no_grad()
def at_threshold(scores: Tensor, count: int, threshold: float) -> Tensor:
    """`scores` moved as a whole until exactly their `count` smallest are at or below `threshold`; ties by position."""
    pruned = lowest(scores, count)
    bound = torch.tensor(threshold, dtype=scores.dtype, device=scores.device)
    above = torch.nextafter(bound, torch.full_like(bound, torch.inf))
    moved = scores if count == 0 else scores + (bound - scores[pruned].max())
    return torch.where(pruned, moved.clamp(max=bound), moved.clamp(min=above))


@torch.no_grad()
def reset_thresholds(model: nn.Module, sparsity: float | Mapping[str, int], ties: Ties = "exact") -> None:
    """Bring every masked matrix back to its sparsity, in place, by its own threshold (local, as published).

    Heads compete with those of all layers, and so do neurons: they have one threshold (global, as published).

    sparsity  one for all matrices, or the count of pruned weights of each by name (what a mask file or a global cut
              gave them). Raises `UserError` when ties empty a matrix.
    """
    competing: dict[str, list[Masked]] = {}
    for name, module in masked_modules(model).items():
        in_groups = kind_of(name) if module.scores.dim() == 1 else None
        competing.setdefault(in_groups or name, []).append(module)
    for name, modules in competing.items():
        scores = torch.cat([module.scores.reshape(-1) for module in modules])
        magnitude = modules[0].weight.abs().reshape(-1) if modules[0].scores.dim() > 1 else None
        count = sparsity[name] if isinstance(sparsity, Mapping) else pruned_count(len(scores), sparsity)
        theta = exact_threshold(scores, count, ties, magnitude)
        if not bool((scores > theta).any()):
            raise UserError(f"tied scores leave no weight of '{name}'; set masks.ties=exact, or lower the sparsity")
        for module, own in zip(modules, scores.split([module.scores.numel() for module in modules]), strict=True):
            module.scores.copy_(own.view_as(module.scores))
            module.threshold.fill_(theta)
