"""What `mlpt prune`, `masks`, `evaluate` and `export` do: names of files and folders in, plain values out."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor
from transformers import AutoTokenizer

from mlpt.data.blocks import Blocks
from mlpt.data.reach import hub_lookup
from mlpt.data.tokenizers import has_tokenizer, knows_words
from mlpt.errors import UserError
from mlpt.models.config import attends_within_documents, check_pretrained
from mlpt.models.encoder import Encoder, load_encoder
from mlpt.models.masked import add_pooler, maskable_weights
from mlpt.randomness import torch_generator
from mlpt.sparsity.artefacts import (
    MaskFile,
    base_hash,
    fit,
    is_description,
    load_masks,
    masks_beside,
    save_masks,
    save_published,
)
from mlpt.sparsity.compare import Comparison, Pairing, compare, distances
from mlpt.sparsity.config import pretrained_pooler
from mlpt.sparsity.evaluate import evaluate_pretraining
from mlpt.sparsity.export import export_compact, export_dense, latency_before_and_after, load_compact
from mlpt.sparsity.making import Rounding, Scope, largest, magnitude_masks, random_masks
from mlpt.sparsity.structured import (
    Kind,
    drawn_importance,
    importance,
    load_group_mask,
    over_weights,
    save_group_mask,
    whole_groups,
)

Method = Literal["magnitude", "random"]
Suffix = Literal[".weight", ".weight_mask"]


def prune(
    model: str,
    method: str,
    sparsity: float,
    out: str,
    seed: int = 0,
    scope: Scope = "local",
    rounding: Rounding = "floor",
    modules: str = "tamt",
    structured: Kind | None = None,
) -> dict[str, Any]:
    """One-shot masks of the model (folder or hub name) written to `out`.

    out       a `.safetensors` file or a folder; a `.pt` file for the published format; with `structured` also the
              published `.npy` file, which a folder then has too (head_mask.npy, ffn_mask.npy).
    rounding  `floor`, or `round` as torch.nn.utils.prune and so the published one-shot script.
    Returns {file, method, density, layers}. Raises `UserError` for bad input.
    """
    if method not in get_args(Method):
        hint = "; iterative pruning trains: mlpt pretrain tamt_imp" if method in ("imp", "iterative") else ""
        raise UserError(f"there is no one-shot method '{method}'; there are magnitude and random{hint}")
    encoder = load_encoder(model, {})
    if structured is None and modules == "tamt":
        add_pooler(encoder, pretrained_pooler(model))
    if structured is not None:
        masks = _group_masks(encoder, method, sparsity, seed, structured, rounding)
    elif method == "magnitude":
        masks = magnitude_masks(maskable_weights(encoder, modules), sparsity, scope, rounding)
    else:
        masks = random_masks(maskable_weights(encoder, modules), sparsity, seed, rounding)
    known = {"sparsity": sparsity, "seed": seed if method == "random" else None, "base": model}
    file = MaskFile.of(masks, method, base_hash=base_hash(encoder, list(masks)), **known)
    target = _write(file, out, encoder, ".weight_mask")
    layers = {name: layer.density for name, layer in file.description.layers.items()}
    return {"file": str(target), "method": method, "density": file.description.density, "layers": layers}


def _group_masks(
    encoder: Encoder, method: str, sparsity: float, seed: int, kind: Kind, rounding: Rounding
) -> dict[str, Tensor]:
    """In their weights' shapes, by weight name."""
    if method == "magnitude":
        values = importance(encoder, kind)
    else:
        values = drawn_importance(encoder, kind, torch_generator(seed, f"random {kind} mask"))
    return over_weights(encoder, largest(values, sparsity, "global", rounding))


def show(files: Sequence[str]) -> list[dict[str, Any]]:
    """What each mask file says of itself: `Description` as plain data, with its `file`."""
    described = _mask_files(files)
    return [{"file": name, **load_masks(name).description.model_dump(mode="json")} for name in described]


def convert(
    file: str, out: str, suffix: Suffix = ".weight", model: str | None = None, another_base: bool = False
) -> dict[str, Any]:
    """Write the masks in `file` to `out`: a published `.pt` or `.npy`, or ours (a `.safetensors` or a folder).

    suffix  of the keys in a `.pt`: `.weight` as the published mask training writes them, `.weight_mask` as its pruning.
    model   the base model (folder or hub name) whose hash a file of this project's format then carries; a published
            file names none. A `.npy` is read and written with it alone.
    another_base  the masks were made for other weights of the same shapes, such as those that trained along with them.
    Returns {file, density, matrices}. Raises `UserError` where the masks are of another model.
    """
    encoder = None
    if model is not None:
        encoder = load_encoder(model, {})
        add_pooler(encoder, pretrained_pooler(model))
    source = load_masks(file, encoder)
    if encoder is not None:
        fit(source, encoder, check_base=not another_base)
        known = source.description.model_dump(include={"method", "sparsity", "seed", "step"})
        hashed = base_hash(encoder, list(source.masks))
        source = MaskFile.of(source.masks, base=model, base_hash=hashed, **known)
    target = _write(source, out, encoder, suffix)
    return {"file": str(target), "density": source.description.density, "matrices": len(source.masks)}


def _write(file: MaskFile, out: str, model: Encoder | None, suffix: Suffix) -> Path:
    target = Path(out)
    if target.suffix == ".pt":
        save_published(file.masks, target, suffix)
    elif target.suffix == ".npy":
        groups = {} if model is None else whole_groups(model, fit(file, model, check_base=False))
        if len(groups) != 1:
            raise UserError(f"{out} would be a mask of heads, or of neurons, of a model that is named; these are not")
        (kept,) = groups.values()
        save_group_mask(kept, target)
    else:
        target = save_masks(file, target, model)
    return target


def _mask_files(files: Sequence[str]) -> list[str]:
    """Without the descriptions that a glob such as `masks/*` brings along."""
    return [file for file in files if not is_description(file)]


def compare_files(files: Sequence[str], pairing: Pairing = "key") -> Comparison:
    """Similarity of every pair of mask files, named by their paths."""
    compared = _mask_files(files)
    if len(compared) < 2:
        raise UserError("comparing masks needs two files or more")
    return compare({name: load_masks(name).masks for name in compared}, pairing)


def distance_files(reference: str, files: Sequence[str], pairing: Pairing = "key") -> list[dict[str, Any]]:
    """{file, step, similarity, distance} of each mask file from the reference, by step.

    The step is the file's own, or the last number in its path (published files have none).
    """
    later = _mask_files(files)
    if not later:
        raise UserError("give the mask files whose distance from the reference is wanted")
    start = load_masks(reference).masks
    rows = []
    for name in later:
        file = load_masks(name)
        step = file.description.step if file.description.step is not None else _last_number(name)
        rows.append({"file": name, **distances(start, [(step, file.masks)], pairing)[0]})
    return sorted(rows, key=lambda row: row["step"])


def _last_number(name: str) -> int:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else 0


def evaluate_files(
    model: str,
    blocks: str,
    masks: str | None = None,
    split: Literal["train", "dev", "test"] = "test",
    batches: int | None = 16,
    batch_size: int = 32,
    seed: int = 42,
    padding: Literal["out", "in"] = "out",
    token_types: Literal["zero", "pair"] = "zero",
    dense: bool = False,
) -> dict[str, Any]:
    """`evaluate_pretraining` of a model folder or hub name on prepared blocks, dense or under masks.

    masks  a mask file; None: those beside the model's weights, if there are any and it is not to be `dense`.
    Adds `masks`, the masks in force or None, and `split`.
    """
    encoder = load_encoder(model, {}, complete=True)
    if token_types == "pair" and getattr(encoder.config, "type_vocab_size", 0) < 2:
        raise UserError(f"a {encoder.config.model_type} has no second token type; use --token-types zero")
    masks = masks or (None if dense else masks_beside(model))
    if masks is not None:
        add_pooler(encoder, pretrained_pooler(model))
    rows = Blocks.open(blocks, split, tells_documents=attends_within_documents(encoder.config))
    rows.require_tokenizer_of(model)
    check_pretrained(encoder.config, rows.vocabulary, rows.block_size, model)
    file = load_masks(masks, encoder) if masks is not None else None
    found = evaluate_pretraining(encoder, rows, rows.vocabulary, file, batches, batch_size, seed, padding, token_types)
    return {**found, "masks": masks, "split": split}


def export_files(
    model: str,
    out: str,
    masks: str | None = None,
    heads: str | None = None,
    neurons: str | None = None,
    dense: bool = False,
) -> dict[str, Any]:
    """Write a folder for other programs: dense with zeros, or physically smaller where whole heads or neurons go.

    masks           a mask file, or a folder that holds one; by default the one beside the model's weights, if there is
                    one and the model is not to be `dense`.
    heads, neurons  published masks of them (.npy) instead.
    Returns {folder, loader, masks, ...}; for the smaller model with `latency` before and after, measured here and now.
    """
    if masks is not None and (heads or neurons):
        raise UserError("masks of single weights make no smaller model: export either them or heads and neurons")
    if dense and (masks or heads or neurons):
        raise UserError("--dense leaves masks aside; give either it or the masks to export")
    encoder, tokenizer = load_encoder(model, {}, complete=True), _tokenizer_of(model)
    given: dict[Kind, str | None] = {"heads": heads, "neurons": neurons}
    chosen = {kind: load_group_mask(file) for kind, file in given.items() if file is not None}
    used = masks or (None if chosen or dense else masks_beside(model))
    if used is not None:
        file = load_masks(used, encoder)
        chosen = whole_groups(encoder, fit(file, encoder))
        if not chosen:
            add_pooler(encoder, pretrained_pooler(model))
            folder = export_dense(encoder, file, out, tokenizer)
            known = {"density": file.description.density, "masks": used}
            return {"folder": str(folder), "loader": "transformers.AutoModel", **known}
    if not chosen:
        encoder.save(out, tokenizer)
        return {"folder": out, "loader": "transformers.AutoModel", "density": 1.0, "masks": None}
    made = export_compact(encoder, out, chosen, tokenizer)
    is_stock = made["loader"].startswith("transformers")
    smaller = load_encoder(out, {}).backbone if is_stock else load_compact(out)
    return made | {"masks": used, "latency": latency_before_and_after(encoder.backbone, smaller)}


def _tokenizer_of(model: str) -> Any:
    """None for a model without a tokenizer, which is exported without one, too."""
    if not has_tokenizer(model):
        return None
    try:
        with hub_lookup(model):
            tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError):
        return None
    return tokenizer if knows_words(tokenizer) else None
