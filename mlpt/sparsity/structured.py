"""Structured masks: whole attention heads and FFN neurons (TAMT's structured path), and a physically smaller model.

A head or neuron is masked at the input of the linear layer that reads it. The cut is global: over the heads, or over
the neurons, of all layers together, as in the published code.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlpt.errors import UserError
from mlpt.models.masked import (
    THETA,
    GroupMaskedLinear,
    attach_group_scores,
    backbone_of,
    group_masked_modules,
    remove_scores,
)
from mlpt.outputs import write_file
from mlpt.sparsity.making import check_sparsity, lowest, pruned_count
from mlpt.sparsity.scores import scores_of_mask

Kind = Literal["heads", "neurons"]
GROUP_FILES: dict[Kind, str] = {"heads": "head_mask.npy", "neurons": "ffn_mask.npy"}  # the published names
_READS = {
    "heads": re.compile(r".*layer\.\d+\.attention\.output\.dense"),
    "neurons": re.compile(r".*layer\.\d+\.output\.dense"),
}


def readers(model: nn.Module, kind: Kind) -> dict[str, nn.Linear]:
    """The linear layer of each encoder layer that reads the heads (or neurons), by module name, in layer order.

    Raises `UserError` for a model that is not built like BERT or RoBERTa.
    """
    named = backbone_of(model).named_modules()
    found = {name: m for name, m in named if isinstance(m, nn.Linear) and _READS[kind].fullmatch(name)}
    if not found:
        raise UserError(f"{kind} can be pruned in BERT- and RoBERTa-like models only")
    return found


def group_count(model: nn.Module, kind: Kind) -> int:
    """Heads, or FFN neurons, of a layer."""
    config = backbone_of(model).config
    return config.num_attention_heads if kind == "heads" else config.intermediate_size


@torch.no_grad()
def importance(model: nn.Module, kind: Kind) -> Tensor:
    """(layers, groups) float32: norm of what writes a head (its values) or neuron times the norm of what reads it."""
    modules, rows = dict(backbone_of(model).named_modules()), []
    groups = group_count(model, kind)
    for name, reader in readers(model, kind).items():
        layer = name.removesuffix(".attention.output.dense").removesuffix(".output.dense")
        writer = modules[f"{layer}.attention.self.value" if kind == "heads" else f"{layer}.intermediate.dense"]
        written = writer.weight.view(groups, -1).norm(dim=1)
        read = reader.weight.t().reshape(groups, -1).norm(dim=1)  # (in, out) rows of a group, joined
        rows.append(written * read)
    return torch.stack(rows).float().cpu()


def group_mask(scores: Tensor, sparsity: float) -> Tensor:
    """(layers, groups) bool: the floor(n * sparsity) smallest `scores` over all layers are pruned; ties by position."""
    check_sparsity(sparsity)
    return ~lowest(scores, pruned_count(scores.numel(), sparsity))


def random_group_mask(shape: tuple[int, int], sparsity: float, generator: torch.Generator) -> Tensor:
    """(layers, groups) bool with floor(n * sparsity) groups pruned at random over all layers."""
    return group_mask(torch.rand(shape, generator=generator), sparsity)


def attach_groups(model: nn.Module, kind: Kind, scores: Tensor, threshold: float = THETA) -> None:
    """Mask heads or neurons by `scores` (layers, groups), trainable and straight-through; in place."""
    named = readers(model, kind)
    expected = (len(named), group_count(model, kind))
    if tuple(scores.shape) != expected:
        raise UserError(f"the {kind} mask is {tuple(scores.shape)} and the model has {expected} (layers, {kind})")
    attach_group_scores(model, {f"{n}.weight": row for n, row in zip(named, scores.float(), strict=True)}, threshold)


def attach_group_mask(model: nn.Module, kind: Kind, mask: Tensor) -> None:
    """Mask heads or neurons by a bool (layers, groups) `mask`: kept 0.02, pruned 0, threshold 0.01, as published."""
    attach_groups(model, kind, scores_of_mask(mask))


@torch.no_grad()
def current_group_mask(model: nn.Module, kind: Kind) -> Tensor | None:
    """(layers, groups) bool on the CPU; None when this kind is not masked."""
    masked = _masked(model, kind)
    return torch.stack([m.scores > m.threshold for m in masked]).cpu() if masked else None


@torch.no_grad()
def reset_group_thresholds(model: nn.Module, kind: Kind, sparsity: float) -> None:
    """One threshold for all layers, so that exactly floor(n * sparsity) heads or neurons are pruned, in place."""
    masked = _masked(model, kind)
    scores = torch.stack([m.scores for m in masked])
    pruned = lowest(scores, pruned_count(scores.numel(), sparsity))
    theta = scores[pruned].max() if pruned.any() else scores.new_tensor(-torch.inf)
    above = torch.nextafter(theta, torch.full_like(theta, torch.inf))
    for module, gone in zip(masked, pruned, strict=True):
        module.scores.copy_(torch.where(gone, module.scores, module.scores.clamp(min=above)))
        module.threshold.fill_(theta)


def _masked(model: nn.Module, kind: Kind) -> list[GroupMaskedLinear]:
    named = group_masked_modules(model)
    return [module for name, module in named.items() if _READS[kind].fullmatch(name.removesuffix(".weight"))]


def save_group_mask(mask: Tensor, path: str | Path) -> None:
    """Write `head_mask.npy` or `ffn_mask.npy` as published: float32 (layers, groups), 1 = kept."""
    content = io.BytesIO()
    np.save(content, mask.float().numpy(), allow_pickle=False)
    write_file(Path(path), content.getvalue())


def save_groups(model: nn.Module, kinds: Sequence[Kind], folder: Path) -> None:
    """Write the structured masks in force, one file a kind, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        mask = current_group_mask(model, kind)
        if mask is not None:
            save_group_mask(mask, folder / GROUP_FILES[kind])


def load_group_mask(path: str | Path) -> Tensor:
    """Read such a file as bool (layers, groups); raises `UserError` for anything else, pickles included."""
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no head or neuron mask at {path}; `mlpt prune --structured heads` makes one"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"cannot read {path} ({error.strerror})") from error
        raise UserError(f"{path} is not a NumPy array of plain numbers") from error
    except ValueError as error:
        raise UserError(f"{path} is not a NumPy array of plain numbers") from error
    if values.ndim != 2:
        raise UserError(f"{path} holds {values.shape}; a structured mask is (layers, heads or neurons)")
    return torch.from_numpy(values > 0)


# ---------------------------------------------------------------- physically smaller


@torch.no_grad()
def shrink(model: nn.Module, heads: Tensor | None = None, neurons: Tensor | None = None) -> None:
    """Cut pruned heads and neurons out of a dense model's weights, in place: the same function, smaller matrices.

    heads, neurons  bool (layers, groups), True = kept. A layer that loses all its heads (or neurons) keeps one whose
    output is zero, because stock attention needs one.
    """
    remove_scores(model)
    backbone = backbone_of(model)
    modules = dict(backbone.named_modules())
    for kind, mask in (("heads", heads), ("neurons", neurons)):
        if mask is None:
            continue
        named = readers(backbone, kind)  # type: ignore[arg-type]
        expected = (len(named), group_count(backbone, kind))  # type: ignore[arg-type]
        if tuple(mask.shape) != expected:
            raise UserError(f"the {kind} mask is {tuple(mask.shape)} and the model has {expected} (layers, {kind})")
        for name, kept in zip(named, mask, strict=True):
            layer = modules[name.removesuffix(".attention.output.dense").removesuffix(".output.dense")]
            _shrink_heads(layer, kept) if kind == "heads" else _shrink_neurons(layer, kept)


def _shrink_heads(layer: Any, kept: Tensor) -> None:
    attention, reader = layer.attention.self, layer.attention.output.dense
    size = attention.attention_head_size
    rows = _rows(kept).repeat_interleave(size) * size + torch.arange(size).repeat(max(1, int(kept.sum())))
    for part in (attention.query, attention.key, attention.value):
        _keep_outputs(part, rows)
    _keep_inputs(reader, rows, silent=not bool(kept.any()))
    attention.num_attention_heads = len(rows) // size
    attention.all_head_size = len(rows)


def _shrink_neurons(layer: Any, kept: Tensor) -> None:
    rows = _rows(kept)
    _keep_outputs(layer.intermediate.dense, rows)
    _keep_inputs(layer.output.dense, rows, silent=not bool(kept.any()))


def _rows(kept: Tensor) -> Tensor:
    return kept.nonzero().squeeze(1) if kept.any() else torch.zeros(1, dtype=torch.int64)


def _keep_outputs(linear: nn.Linear, rows: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[rows].clone())
    linear.bias = nn.Parameter(linear.bias[rows].clone())
    linear.out_features = len(rows)


def _keep_inputs(linear: nn.Linear, columns: Tensor, silent: bool) -> None:
    linear.weight = nn.Parameter(linear.weight[:, columns].clone() * (0.0 if silent else 1.0))
    linear.in_features = len(columns)
