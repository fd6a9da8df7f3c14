"""Heads and FFN neurons as what is masked (TAMT's structured path), and a physically smaller model.

A head or neuron is masked at the input of the linear layer that reads it. The cut is global: over the heads, or over
the neurons, of all layers together, as in the published code.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlpt.errors import UserError
from mlpt.models.masked import backbone_of, over_features, over_weight, remove_scores
from mlpt.outputs import write_file

Kind = Literal["heads", "neurons"]


@dataclass(frozen=True)
class Granularity:
    """Groups of features with one score each: which linear layer of an encoder layer reads them, and which write them.

    reader   whose input features they are; its columns are masked.
    writers  whose output features they are; the last one's outputs are what is read.
    count    what the model's configuration calls the number of groups in a layer.
    file     the published name of a mask file.
    """

    reader: str
    writers: tuple[str, ...]
    count: str
    file: str

    def matches(self, weight: str) -> bool:
        """Whether the weight of that name is a reader's."""
        return re.fullmatch(rf".*layer\.\d+\.{re.escape(self.reader)}\.weight", weight) is not None


GRANULARITIES: dict[Kind, Granularity] = {
    "heads": Granularity(
        "attention.output.dense",
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "num_attention_heads",
        "head_mask.npy",
    ),
    "neurons": Granularity("output.dense", ("intermediate.dense",), "intermediate_size", "ffn_mask.npy"),
}


def kind_of(weight: str) -> Kind | None:
    """The kind of groups that the weight of that name reads; None: none."""
    return next((kind for kind, groups in GRANULARITIES.items() if groups.matches(weight)), None)


def readers(model: nn.Module, kind: Kind) -> dict[str, Tensor]:
    """The weight in each encoder layer that reads the heads (or neurons), by its name, in layer order.

    Raises `UserError` for a model that is not built like BERT or RoBERTa.
    """
    named = ((f"{name}.weight", m) for name, m in backbone_of(model).named_modules() if isinstance(m, nn.Linear))
    found = {name: module.weight for name, module in named if GRANULARITIES[kind].matches(name)}
    if not found:
        raise UserError(f"{kind} can be pruned in BERT- and RoBERTa-like models only")
    return found


def group_count(model: nn.Module, kind: Kind) -> int:
    """Heads, or FFN neurons, of a layer."""
    count: int = getattr(backbone_of(model).config, GRANULARITIES[kind].count)
    return count


@torch.no_grad()
def importance(model: nn.Module, kind: Kind) -> dict[str, Tensor]:
    """(groups,) float32 by reader's weight: norm of a head's (values') or neuron's writer times norm of its reader."""
    modules, found = dict(backbone_of(model).named_modules()), {}
    groups = group_count(model, kind)
    for name, weight in readers(model, kind).items():
        writer = modules[name.replace(f"{GRANULARITIES[kind].reader}.weight", GRANULARITIES[kind].writers[-1])]
        written = writer.weight.view(groups, -1).norm(dim=1)
        read = weight.t().reshape(groups, -1).norm(dim=1)  # (in, out) rows of a group, joined
        found[name] = (written * read).float().cpu()
    return found


def drawn_importance(model: nn.Module, kind: Kind, generator: torch.Generator) -> dict[str, Tensor]:
    """The same in [0, 1) at random, so that a cut through it is one at random."""
    names = readers(model, kind)
    return dict(zip(names, torch.rand((len(names), group_count(model, kind)), generator=generator), strict=True))


def by_weight(model: nn.Module, kind: Kind, kept: Tensor) -> dict[str, Tensor]:
    """The rows of `kept` (layers, groups) by reader's weight. Raises `UserError` for another number of either."""
    names = readers(model, kind)
    expected = (len(names), group_count(model, kind))
    if tuple(kept.shape) != expected:
        raise UserError(f"the {kind} mask is {tuple(kept.shape)} and the model has {expected} (layers, {kind})")
    return dict(zip(names, kept, strict=True))


def over_weights(model: nn.Module, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`rows` (groups,) of scores or masks, each in the shape of its weight."""
    named = {f"{name}.weight": module for name, module in backbone_of(model).named_modules()}
    return {name: over_weight(row, named[name].weight) for name, row in rows.items()}


def whole_groups(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[Kind, Tensor]:
    """(layers, groups) bool of each kind, True = kept, where `masks` prune whole heads and neurons alone; else {}.

    masks  bool in their weights' shapes, by `model`'s own weight names.
    """
    found: dict[Kind, Tensor] = {}
    for kind in {kind_of(name): None for name in masks}:
        names = readers(model, kind) if kind is not None else {}
        if kind is None or not masks.keys() >= names.keys():
            return {}
        parts = torch.stack([masks[name].unflatten(1, (group_count(model, kind), -1)) for name in names])
        found[kind] = parts.all(dim=(1, 3))  # of (layers, out, groups, features)
        if not torch.equal(found[kind], parts.any(dim=(1, 3))):
            return {}
    return found


def save_group_mask(mask: Tensor, path: str | Path) -> None:
    """Write `head_mask.npy` or `ffn_mask.npy` as published: float32 (layers, groups), 1 = kept."""
    content = io.BytesIO()
    np.save(content, mask.float().numpy(), allow_pickle=False)
    write_file(Path(path), content.getvalue())


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
def shrink(model: nn.Module, kept: Mapping[Kind, Tensor]) -> None:
    """Cut pruned heads and neurons out of a dense model's weights, in place: the same function, smaller matrices.

    kept  bool (layers, groups), True = kept. A layer that loses all its heads (or neurons) keeps one whose output is
          zero, because stock attention needs one.
    """
    remove_scores(model)
    modules: dict[str, Any] = dict(backbone_of(model).named_modules())
    for kind, mask in kept.items():
        groups = GRANULARITIES[kind]
        for name, row in by_weight(model, kind, mask).items():
            layer, reader = name.removesuffix(f".{groups.reader}.weight"), modules[name.removesuffix(".weight")]
            staying = row if row.any() else torch.arange(len(row)) == 0
            features = over_features(staying, reader.in_features).nonzero().squeeze(1)
            for writer in groups.writers:
                _keep_outputs(modules[f"{layer}.{writer}"], features)
            _keep_inputs(reader, features, silent=not bool(row.any()))
            if kind == "heads":
                attention = modules[f"{layer}.attention.self"]
                attention.num_attention_heads, attention.all_head_size = int(staying.sum()), len(features)


def _keep_outputs(linear: nn.Linear, rows: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[rows].clone())
    linear.bias = nn.Parameter(linear.bias[rows].clone())
    linear.out_features = len(rows)


def _keep_inputs(linear: nn.Linear, columns: Tensor, silent: bool) -> None:
    linear.weight = nn.Parameter(linear.weight[:, columns].clone() * (0.0 if silent else 1.0))
    linear.in_features = len(columns)
