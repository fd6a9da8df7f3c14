"""Folders of a multi-task model: the whole of it, and one stock classifier a task where the encoder is a stock one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from mlpt.downstream.loading import apply_masks, auto_class, head_settings, masks_of, model_folder
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.model import MultitaskModel, SharedEncoder
from mlpt.errors import UserError
from mlpt.models.conditional.encoder import ConditionalConfig, ConditionalEncoder, load_stock
from mlpt.models.saved_tokenizer import save_tokenizer
from mlpt.settings import load_settings
from mlpt.tasks import Task
from mlpt.tasks.task import Kind

_ABOUT, _WEIGHTS = "multitask.json", "multitask.safetensors"


def build_multitask_model(
    config: MultitaskConfig, outputs: dict[str, int], kinds: Mapping[str, Kind]
) -> tuple[MultitaskModel, dict[str, Tensor]]:
    """The model, and the masks of its pruned weights by parameter name (bool, True: kept), none for a dense one.

    Pretrained weights where there are any, the rest drawn by `config.seed`. In eval mode, as loaded models are.
    """
    stock = load_stock(model_folder(config.model), config.seed)
    path = masks_of(config.model, config.masks, config.dense)
    masks = apply_masks(path, stock)[0] if path else {}
    masked = [(stock.get_parameter(name), mask) for name, mask in masks.items()]
    encoder: Any = SharedEncoder(stock)
    if config.encoder == "conditional":
        encoder = ConditionalEncoder(stock, config.conditional, len(outputs), config.seed)
    model = MultitaskModel(encoder, outputs, config.seed, kinds).eval()
    names = {parameter: name for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter, mask in masked:  # again: a last layer that starts at random was drawn whole
            parameter.mul_(mask)
    return model, {names[parameter]: mask for parameter, mask in masked}


def save_multitask_model(model: MultitaskModel, folder: Path, tokenizer: Any = None) -> None:
    """Write a folder from which `load_multitask_model` makes the same model."""
    folder.mkdir(parents=True, exist_ok=True)
    conditional = model.encoder.conditional if isinstance(model.encoder, ConditionalEncoder) else None
    about = {
        "outputs": dict(zip(model.decoders, model.outputs, strict=True)),
        "kinds": model.kinds,
        "conditional": None if conditional is None else conditional.model_dump(),
    }
    model.encoder.config.save_pretrained(folder)
    save_file({name: weight.detach().contiguous() for name, weight in model.state_dict().items()}, folder / _WEIGHTS)
    (folder / _ABOUT).write_text(json.dumps(about, indent=1))
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder, model.encoder.config)


def load_multitask_model(folder: str | Path) -> MultitaskModel:
    """The model that `save_multitask_model` wrote, in eval mode. Raises `UserError` where there is none."""
    folder = Path(folder)
    try:
        about = json.loads((folder / _ABOUT).read_text())
        stock = AutoModel.from_config(
            AutoConfig.from_pretrained(folder), attn_implementation="sdpa", dtype=torch.float32
        )
        weights = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} holds no multi-task model ({reason}); give the `model` folder of a run") from error
    encoder: Any = SharedEncoder(stock)
    if about["conditional"] is not None:
        settings = load_settings(ConditionalConfig, about["conditional"])
        encoder = ConditionalEncoder(stock, settings, len(about["outputs"]))
    model = MultitaskModel(encoder, about["outputs"], kinds=about.get("kinds"))
    model.load_state_dict(weights)
    return model.eval()


def export_stock_classifier(model: MultitaskModel, task: Task, folder: Path, tokenizer: Any = None) -> None:
    """A folder that the stock Auto class of the task's kind loads, with the logits that `model` has for `task`.

    Raises `UserError` for a conditional encoder: no stock class computes what it computes.
    """
    if not isinstance(model.encoder, SharedEncoder):
        raise UserError("a conditional encoder has no stock class; load its folder with load_multitask_model")
    stock, decoder = model.encoder.stock, model.decoders[task.name]
    config = type(stock.config).from_dict({**stock.config.to_dict(), **head_settings(task)})
    with torch.device("meta"):
        exported = auto_class(task).from_config(config)
    weights = {f"{exported.base_model_prefix}.{name}": weight for name, weight in stock.state_dict().items()}
    pooler, head = f"{exported.base_model_prefix}.pooler.dense", "classifier"
    if task.per_token:  # their stock classes have no pooler
        weights = {name: weight for name, weight in weights.items() if not name.startswith(pooler)}
        head = "qa_outputs" if task.kind == "span" else "classifier"
    elif stock.config.model_type == "roberta":  # its stock head holds what BERT calls the pooler
        weights |= {f"classifier.dense.{part}": weights.pop(f"{pooler}.{part}") for part in ("weight", "bias")}
        head = "classifier.out_proj"
    weights |= {f"{head}.{name}": weight for name, weight in decoder.state_dict().items()}
    exported.save_pretrained(folder, state_dict={name: weight.cpu().contiguous() for name, weight in weights.items()})
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder, exported.config)
