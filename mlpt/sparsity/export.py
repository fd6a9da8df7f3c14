"""Folders other programs load: dense with zeros (any stock class), or physically smaller (structured masks only).

Zeros make no model faster: only the smaller folder is, and its latency is measured, not claimed.
"""

import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM

from mlpt.errors import UserError
from mlpt.models.encoder import load_encoder
from mlpt.models.masked import backbone_of, remove_scores
from mlpt.models.saved_tokenizer import save_tokenizer
from mlpt.outputs import read_json
from mlpt.sparsity.artefacts import MaskFile, fit, load_masks, masks_beside, save_masks, zero_pruned
from mlpt.sparsity.structured import GRANULARITIES, Kind, group_count, shrink, whole_groups
from mlpt.storage.stock import COMPACT_FILE


def export_dense(
    model: nn.Module, file: MaskFile, out: str | Path, tokenizer: Any = None, check_base: bool = True
) -> Path:
    """Write a folder with zeros where `file` prunes, for stock `AutoModel...`; the masks lie beside the weights.

    model  the untouched base (a stock `...ForMaskedLM` or an `Encoder`); it is not changed.
    """
    smaller = copy.deepcopy(backbone_of(model))
    remove_scores(smaller)
    zero_pruned(smaller, fit(file, smaller, check_base))
    folder = Path(out)
    smaller.save_pretrained(folder)
    save_masks(file, folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder, smaller.config)
    return folder


def export_compact(
    model: nn.Module, out: str | Path, kept: Mapping[Kind, Tensor], tokenizer: Any = None
) -> dict[str, Any]:
    """Write a folder whose matrices lack the pruned heads and neurons (bool (layers, groups), True = kept).

    Stock transformers loads it where its configuration can say so: all layers keep equally many neurons, and all heads.
    Otherwise `load_compact` does, by the sizes in `compact.json`. Returns {folder, loader, parameters_before,
    parameters}.
    """
    full = backbone_of(model)
    smaller = copy.deepcopy(full)
    shrink(smaller, kept)
    sizes = _sizes(smaller)
    is_stock = set(sizes["heads"]) == {full.config.num_attention_heads} and len(set(sizes["neurons"])) == 1
    if is_stock:
        smaller.config.intermediate_size = sizes["neurons"][0]
    folder = Path(out)
    smaller.save_pretrained(folder)
    if not is_stock:
        (folder / COMPACT_FILE).write_text(json.dumps(sizes) + "\n", encoding="utf-8")
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder, smaller.config)
    return {
        "folder": str(folder),
        "loader": "transformers.AutoModelForMaskedLM" if is_stock else "mlpt.sparsity.export.load_compact",
        "parameters_before": sum(parameter.numel() for parameter in full.parameters()),
        "parameters": sum(parameter.numel() for parameter in smaller.parameters()),
    }


def load_compact(folder: str | Path) -> Any:
    """The stock `...ForMaskedLM` of a folder that `export_compact` wrote, with its smaller layers.

    Raises `UserError` when the folder is not such a one.
    """
    source = Path(folder)
    if not (source / COMPACT_FILE).is_file():
        raise UserError(f"{source} has no {COMPACT_FILE}; load it with transformers.AutoModelForMaskedLM")
    sizes = read_json(source / COMPACT_FILE)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source))
    shrink(model, {kind: _first(sizes[kind], group_count(model, kind)) for kind in GRANULARITIES})
    missing, unexpected = model.load_state_dict(load_file(source / "model.safetensors"), strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or {})
    if unexpected or set(missing) - tied:
        raise UserError(f"the weights in {source} do not fit its {COMPACT_FILE}; export the model again")
    return model.eval()


def _first(counts: list[int], total: int) -> Tensor:
    """(layers, total) bool with the first `counts` of each layer kept: the shapes are all that matters."""
    return torch.arange(total).unsqueeze(0) < torch.tensor(counts).unsqueeze(1)


def _sizes(backbone: Any) -> dict[str, list[int]]:
    layers = backbone.base_model.encoder.layer
    return {
        "heads": [layer.attention.self.num_attention_heads for layer in layers],
        "neurons": [layer.intermediate.dense.out_features for layer in layers],
    }


@torch.no_grad()
def latency(model: nn.Module, batch_size: int = 1, length: int = 128, rounds: int = 20) -> dict[str, float]:
    """Median and best milliseconds of a forward pass of the encoder body, eval mode, where the model is."""
    backbone = backbone_of(model)
    was_training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    length = min(length, backbone.config.max_position_embeddings - 2)  # RoBERTa counts from its padding id
    tokens = torch.full((batch_size, length), 5 % backbone.config.vocab_size, device=device)
    taken = []
    for measured in range(rounds + 2):
        start = time.perf_counter()
        backbone.base_model(tokens)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if measured >= 2:  # the first passes warm caches
            taken.append(1000 * (time.perf_counter() - start))
    backbone.train(was_training)
    return {"median_ms": sorted(taken)[len(taken) // 2], "best_ms": min(taken)}


def as_exported(folder: str | Path) -> Any:
    """The stock model in `folder` as `mlpt export` would write it: physically smaller if masks of heads or neurons lie
    beside its weights, else the dense one, as zeros alone make nothing faster."""
    backbone = load_encoder(folder, {}).backbone
    if masks_beside(folder) is not None:
        shrink(backbone, whole_groups(backbone, fit(load_masks(folder, backbone), backbone)))
    return backbone.eval()


def latency_when_exported(folder: str | Path, batch_size: int = 1, length: int = 128, rounds: int = 5) -> float:
    """Median milliseconds of a forward pass of the model in `folder` as exported (`as_exported`), on one CPU thread.

    `batch_size` rows of `length` tokens, or as many as it has positions. Whatever else runs on the machine disturbs a
    timing, so it is the least median of several `rounds` of 20 passes.
    """
    backbone = as_exported(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(latency(backbone, batch_size, length)["median_ms"] for _ in range(rounds))
    finally:
        torch.set_num_threads(threads)


def latency_before_and_after(before: nn.Module, after: nn.Module, batch_size: int = 1, length: int = 128) -> dict:
    """Both latencies, measured in one run on one machine, and their ratio (above 1: the second model is faster)."""
    first, second = latency(before, batch_size, length), latency(after, batch_size, length)
    threads = torch.get_num_threads()
    ratio = first["median_ms"] / second["median_ms"]
    return {
        "batch_size": batch_size,
        "length": length,
        "threads": threads,
        "before": first,
        "after": second,
        "ratio": ratio,
    }
