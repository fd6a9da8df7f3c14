"""Masks on disk: `masks.safetensors` (one bit a weight) with `sparsity.json`, and TAMT's published files.

A mask is a small artefact for an untouched base model: the file names that model by a hash and is refused by any other.
Pruned heads and neurons are pruned columns of the layer that reads them: nothing they compute gets any further.
"""

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from mlpt.errors import UserError, reason
from mlpt.models.masked import backbone_of
from mlpt.outputs import write_file
from mlpt.settings import Settings
from mlpt.sparsity.making import density, layer_density
from mlpt.sparsity.structured import (
    GRANULARITIES,
    Kind,
    by_weight,
    group_count,
    load_group_mask,
    over_weights,
    save_group_mask,
    whole_groups,
)

MASKS_FILE = "masks.safetensors"
GROUP_FILES = {groups.file: kind for kind, groups in GRANULARITIES.items()}  # the published names
MASK_FILES = (MASKS_FILE, "mask.pt", *GROUP_FILES)  # what a folder may hold; the first that is there counts
FORMAT = "mlpt-masks-1"  # bits of the flattened mask, 1 = kept, first weight in the lowest bit of the first byte


class Layer(Settings):
    """One masked weight: its shape and the fraction kept."""

    shape: tuple[int, ...]
    density: float


class Description(Settings):
    """What `sparsity.json` says of a mask file.

    method     how the masks were made (`magnitude`, `random`, `imp`, `tamt_mlm`, ...).
    sparsity   the target fraction pruned; `density` is the fraction kept over all matrices as it is.
    base_hash  of the dense weights the masks belong to (see `base_hash`); None when unknown, as in a mask.pt.
    base       the base model as its maker named it; for people.
    step       the training step the masks were taken at.
    layers     one entry a weight, in the model's order.
    """

    format: str = FORMAT
    method: str
    sparsity: float | None = None
    seed: int | None = None
    step: int | None = None
    base: str | None = None
    base_hash: str | None = None
    density: float
    layers: dict[str, Layer]


@dataclass(frozen=True)
class MaskFile:
    """Masks (bool on the CPU, True = kept, by weight name in the model's order) and what is known of them."""

    masks: Mapping[str, Tensor]
    description: Description

    @classmethod
    def of(cls, masks: Mapping[str, Tensor], method: str, **known: Any) -> "MaskFile":
        """Describe `masks`; `known` are further fields of `Description` (sparsity, seed, step, base, base_hash)."""
        densities = layer_density(masks)
        layers = {name: Layer(shape=tuple(mask.shape), density=densities[name]) for name, mask in masks.items()}
        return cls(masks, Description(method=method, density=density(masks), layers=layers, **known))


def base_hash(model: nn.Module, names: list[str]) -> str:
    """BLAKE2b of the dense weights `names` as float32, whatever head class holds them; 32 hex digits.

    The pooler is left out: half of the stock classes of one and the same model have none.
    """
    digest = hashlib.blake2b(digest_size=16)
    parameters = _weights(model)
    prefix = _prefix(model)
    for name in sorted(name.removeprefix(prefix) for name in names if "pooler" not in name):
        weight = parameters.get(name, parameters.get(prefix + name))
        if weight is None:
            raise UserError(f"masks do not fit this model: it has no weight '{name}'")
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(np.ascontiguousarray(weight.detach().float().cpu().numpy()).view(np.uint8).data)
    return digest.hexdigest()


def fit(file: MaskFile, model: nn.Module, check_base: bool = True) -> dict[str, Tensor]:
    """The masks under `model`'s own weight names (with or without `bert.` before them).

    Raises `UserError` when a weight is missing, a shape differs, or the base model is another one. Weights that are
    zero already wherever the masks prune need not be the base: an exported or fine-tuned subnetwork keeps its masks.
    `check_base=False` lets masks go onto any weights of the same shapes.
    """
    parameters, prefix = _weights(model), _prefix(model)
    fitted = {}
    for name, mask in file.masks.items():
        own = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in parameters), None)
        if own is None:
            if "pooler" in name:
                continue  # a pooler mask on a class of the model that has no pooler acts on nothing
            raise UserError(f"masks do not fit this model: it has no weight '{name}'")
        if parameters[own].shape != mask.shape:
            theirs, ours = tuple(mask.shape), tuple(parameters[own].shape)
            raise UserError(f"masks do not fit this model: '{name}' is {theirs} in the masks and {ours} in the model")
        fitted[own] = mask
    expected = file.description.base_hash
    if not check_base or expected is None or base_hash(model, list(file.masks)) == expected:
        return fitted
    if any(bool(parameters[name][~mask.to(parameters[name].device)].any()) for name, mask in fitted.items()):
        known = f" ({file.description.base})" if file.description.base else ""
        raise UserError(f"these masks belong to another base model{known}: its weights hash to {expected}, not to this")
    return fitted


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return dict(backbone_of(model).named_parameters(remove_duplicate=False))


def _prefix(model: nn.Module) -> str:
    prefix = getattr(backbone_of(model), "base_model_prefix", "")
    return f"{prefix}." if prefix else ""


@torch.no_grad()
def zero_pruned(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Write zeros where `masks` (by the model's own weight names) prune, in place.

    A decoder that is tied to masked embeddings is untied and stays dense, as in mask training.
    """
    _untie_decoder(backbone_of(model), masks)
    parameters = _weights(model)
    for name, mask in masks.items():
        parameters[name].mul_(mask.to(parameters[name]))


def _untie_decoder(backbone: Any, masks: Mapping[str, Tensor]) -> None:
    decoder, weights = backbone.get_output_embeddings(), _weights(backbone)
    if decoder is None or decoder.weight is not backbone.get_input_embeddings().weight:
        return
    if not any(weights[name] is decoder.weight for name in masks):
        return
    # Its bias is tied too, and would not be saved under the name that an untied decoder reads.
    decoder.weight = nn.Parameter(decoder.weight.detach().clone())
    if decoder.bias is not None:
        decoder.bias = nn.Parameter(decoder.bias.detach().clone())
    backbone.config.tie_word_embeddings = False


# ---------------------------------------------------------------- masks.safetensors


def save_masks(file: MaskFile, path: str | Path, model: nn.Module | None = None) -> Path:
    """Write `path` (a `.safetensors` file, or a folder for `masks.safetensors`) and its `sparsity.json`; atomic.

    Each weight is one uint8 tensor of ceil(n / 8) bytes. The description is in the file's header too, so that the file
    alone can be checked. An interrupted save leaves the old file. Returns the mask file's path.

    model  whose masks they are, to write the published `head_mask.npy` and `ffn_mask.npy` of heads and neurons too,
           into a folder.
    """
    target, groups = Path(path), {}
    if target.suffix != ".safetensors":
        groups = whole_groups(model, file.masks) if model is not None else {}
        target = target / MASKS_FILE
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        text = file.description.model_dump_json(indent=1)
        packed = {name: pack(mask) for name, mask in file.masks.items()}
        for kind, kept in groups.items():
            save_group_mask(kept, target.with_name(GRANULARITIES[kind].file))
        write_file(description_path(target), f"{text}\n".encode())
        write_file(target, save(packed, metadata={"sparsity": text}))  # last: what is not whole has none
    except OSError as error:
        raise UserError(_unwritten(target, error)) from error
    return target


def _unwritten(target: Path, error: OSError) -> str:
    return f"masks cannot be written to {target}: {reason(error)}; a file that was there is kept"


def description_path(masks: Path) -> Path:
    """`sparsity.json` beside `masks.safetensors`, `NAME.sparsity.json` beside another mask file."""
    return masks.with_name("sparsity.json" if masks.name == MASKS_FILE else f"{masks.stem}.sparsity.json")


def is_description(path: str | Path) -> bool:
    """True for the JSON beside a mask file: `masks/*` names it too, and it holds no masks."""
    return Path(path).name == "sparsity.json" or Path(path).name.endswith(".sparsity.json")


def masks_beside(folder: str | Path) -> str | None:
    """`folder` itself if it holds a model's own masks, as a masked run leaves them; else, and for a hub name, None."""
    return str(folder) if any((Path(folder) / name).is_file() for name in (MASKS_FILE, *GROUP_FILES)) else None


def load_masks(path: str | Path, model: nn.Module | None = None) -> MaskFile:
    """Read a `.safetensors` mask file, a published `.pt` or `.npy`, or a folder that holds one (see `MASK_FILES`).

    model  the masked one, which gives the masks in a `.npy` their weights' names and shapes.
    Raises `UserError` for anything missing, damaged, or not a mask file.
    """
    sources = [Path(path)]
    if sources[0].is_dir():
        there = [file for name in MASK_FILES if (file := sources[0] / name).is_file()] or [sources[0] / MASKS_FILE]
        sources = there if there[0].name in GROUP_FILES else there[:1]
    source = sources[0]
    if not source.is_file():
        raise UserError(f"there is no mask file at {source}; `mlpt prune` makes one")
    if source.suffix == ".npy":
        if model is None:
            raise UserError(
                f"{source} is a mask of heads or neurons without their names; `mlpt masks convert` adds them"
            )
        return _load_groups(sources, model)
    return _load_published(source) if source.suffix in (".pt", ".bin", ".pth") else _load_packed(source)


def _load_groups(sources: list[Path], model: nn.Module) -> MaskFile:
    masks: dict[str, Tensor] = {}
    kinds: list[Kind] = []
    for source in sources:
        kept = load_group_mask(source)
        alike: Kind = "heads" if kept.shape[1] == group_count(model, "heads") else "neurons"
        kinds.append(GROUP_FILES.get(source.name, alike))
        masks |= over_weights(model, by_weight(model, kinds[-1], kept))
    return MaskFile.of(masks, f"structured: {' and '.join(kinds)}")


def _load_packed(source: Path) -> MaskFile:
    try:
        with safe_open(source, framework="numpy") as stored:
            description = Description.model_validate_json((stored.metadata() or {})["sparsity"])
            if description.format != FORMAT:
                raise UserError(f"{source} has the mask format {description.format}; this version reads {FORMAT}")
            packed = {name: stored.get_tensor(name) for name in description.layers}
        masks = {name: unpack(packed[name], layer.shape) for name, layer in description.layers.items()}
    except (SafetensorError, KeyError, ValidationError, ValueError) as error:
        raise UserError(f"{source} is not a complete mask file; make it again with `mlpt prune`") from error
    return MaskFile(masks, description)


def pack(mask: Tensor) -> np.ndarray:
    """(ceil(n / 8),) uint8, the bits of a bool tensor of n elements, lowest bit first."""
    return np.packbits(mask.detach().cpu().contiguous().view(-1).numpy(), bitorder="little")


def unpack(bits: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of `shape` that `pack` packed; raises ValueError when the sizes differ."""
    size = int(np.prod(shape))
    if bits.dtype != np.uint8 or len(bits) != (size + 7) // 8:
        raise ValueError(f"{len(bits)} bytes for {size} bits")
    return torch.from_numpy(np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)).view(shape)


# ---------------------------------------------------------------- the published mask.pt


def save_published(
    masks: Mapping[str, Tensor], path: str | Path, suffix: Literal[".weight", ".weight_mask"] = ".weight"
) -> None:
    """Write TAMT's `mask.pt`: a dict of bool tensors; `.weight` keys as mask training, `.weight_mask` as pruning."""
    renamed = {
        name.removesuffix(".weight") + suffix: mask.detach().cpu().bool().contiguous() for name, mask in masks.items()
    }
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch's own writer tells of a full disk in riddles
        torch.save(renamed, content)
        write_file(target, content.getvalue())
    except OSError as error:
        raise UserError(_unwritten(target, error)) from error


def _load_published(source: Path) -> MaskFile:
    try:
        with warnings.catch_warnings(action="ignore"):  # torch comments on pickles that it then refuses
            stored = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{source} is refused: it holds more than tensors, and loading it could run code") from error
    except Exception as error:  # arbitrary bytes make the unpickler stumble in any way
        raise UserError(f"{source} is damaged or not a file that torch.save wrote") from error
    if not isinstance(stored, dict) or not stored or not all(_is_mask(key, mask) for key, mask in stored.items()):
        raise UserError(f"{source} is not a published mask: it must be a dict of weight names to bool tensors")
    masks = {key.removesuffix("_mask"): mask for key, mask in stored.items()}
    return MaskFile.of(masks, method="published")


def _is_mask(key: Any, mask: Any) -> bool:
    named = isinstance(key, str) and key.endswith((".weight", ".weight_mask"))
    return named and isinstance(mask, Tensor) and mask.dtype == torch.bool
