"""Freezing the lower layers of an encoder while what conditions them on the task still learns (CA-MTL)."""

import re
from typing import Literal

from torch import nn

from mlpt.errors import UserError

Modulation = Literal["trainable", "frozen"]

_LAYER = re.compile(r"(?:^|\.)encoder\.layer\.(\d+)\.(.+)")
_EMBEDDINGS = re.compile(r"(?:^|\.)embeddings\.")


def freeze_layers(model: nn.Module, layers: str, modulation: Modulation = "trainable") -> list[str]:
    """Stop the gradients of the embeddings and of encoder layers `a-b` (both included); returns the frozen names.

    In those layers the attention's matrix, the modulation of the layer norms and the bottlenecks stay trainable.
    `modulation` decides on the linear map that modulates the attention: `trainable`, or `frozen` at its random start as
    the published code does because of the parameter's name (CA-3). Default `trainable`: a random constant helps nobody.

    `model` holds a BERT or RoBERTa encoder, stock or conditional, at any depth. Raises UserError for a range that is
    not `a-b` or names layers that do not exist.
    """
    first, last = _range(layers)
    names = dict(model.named_parameters())
    count = 1 + max((int(match[1]) for name in names if (match := _LAYER.search(name))), default=-1)
    if last >= count:
        raise UserError(f"cannot freeze layers {layers}: the encoder has layers 0-{count - 1}")
    frozen = [name for name in names if _is_frozen(name, first, last, modulation)]
    for name in frozen:
        names[name].requires_grad_(False)
    return frozen


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """How many parameters there are: `total` and `trainable` (shared ones once)."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, trains in sizes if trains)}


def _range(layers: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", layers.strip())
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"'{layers}' is not a range of layers: write first-last, for example 0-5")
    return int(match[1]), int(match[2])


def _is_frozen(name: str, first: int, last: int, modulation: Modulation) -> bool:
    if _EMBEDDINGS.search(name):
        return True
    match = _LAYER.search(name)
    if not match or not first <= int(match[1]) <= last:
        return False
    if match[2].startswith("attention_bias.film."):
        return modulation == "frozen"
    return not any(part in match[2] for part in ("attention_bias.", ".film.", "bottleneck"))
