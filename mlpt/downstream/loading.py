"""A saved model with the head of a task: any run, Hugging Face folder or hub name becomes a stock classifier."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)

from mlpt.data import tokenizers
from mlpt.data.reach import hub_lookup
from mlpt.downstream.config import DownstreamConfig
from mlpt.errors import UserError
from mlpt.models.config import register_metalmo
from mlpt.models.quiet import quiet
from mlpt.randomness import address
from mlpt.sparsity.artefacts import MaskFile, fit, load_masks, masks_beside, zero_pruned
from mlpt.storage.stock import read_stock
from mlpt.storage.store import is_uri
from mlpt.tasks import Task


@dataclass
class Base:
    """What every cell of a task starts from; picklable, so that a runtime can share it.

    config   the Hugging Face configuration with the task's head.
    weights  (name -> array) of the saved model. What is missing, a new head first of all, each seed draws anew.
    auto     the stock class of the model; None: that of the task's head.
    """

    config: PreTrainedConfig
    weights: dict[str, Any]
    auto: Any = None


def model_folder(name: str) -> str:
    """`name`, or the `model/` of a finished run's folder; `mlpt.run.saved.resolve_model` knows of checkpoints too.

    Raises `UserError` for a URI (models are loaded from folders) and for a run that is not finished.
    """
    if is_uri(name):
        raise UserError(
            f"{name} is a URI, and models are loaded from folders; copy {name.rstrip('/')}/model here first"
        )
    inner = Path(name) / "model"
    if (inner / "config.json").is_file():
        return os.fspath(inner)
    if (Path(name) / "config.yaml").is_file() and not (Path(name) / "config.json").is_file():
        raise UserError(
            f"{name} is a run that is not finished; mlpt.run.saved.resolve_model makes its checkpoint a model"
        )
    return name


def masks_of(model: str, masks: str | None, dense: bool) -> str | None:
    """The masks that are in force: those named, else those beside the weights of `model`, unless it is to be dense."""
    return masks or (None if dense else masks_beside(model_folder(model)))


def say_masks(config: DownstreamConfig, say: Callable[[str], None]) -> None:
    """Tell which masks are in force, where nobody named them."""
    masks = masks_of(config.model, config.masks, config.dense)
    if masks is not None and config.masks is None:
        say(f"fine-tuning under the masks beside the model ({masks}); dense=true leaves them aside")


def load_base(name: str, task: Task, text_to_text: bool = False) -> Base:
    """Read the saved model once. Raises `UserError` where there is none or it can't be read.

    The head of a model that was already fine-tuned is kept only if it is of the task's kind and its label names are the
    task's, in the same order. text_to_text: the model that predicts tokens, with its own head.
    """
    folder = model_folder(name)
    auto = AutoModelForMaskedLM if text_to_text else auto_class(task)
    if text_to_text:
        register_metalmo()
    try:
        with quiet(), hub_lookup(folder):  # a missing head is what we expect
            saved = AutoConfig.from_pretrained(folder)
            config = AutoConfig.from_pretrained(folder, **({} if text_to_text else head_settings(task)))
            model, drawn = read_stock(auto, folder, any_head=not text_to_text, config=config)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load a model from '{name}' ({reason}); give a run's folder, a Hugging Face folder with "
            "model.safetensors, or a hub name"
        ) from error
    missing = set(drawn)
    if text_to_text:
        if missing:
            raise UserError(f"'{name}' predicts no tokens ({min(missing)} is missing), which text_to_text needs")
        return Base(config, {key: value.numpy() for key, value in model.state_dict().items()}, AutoModelForMaskedLM)
    head = auto_class(task).__name__.removeprefix("AutoModel")
    saved_heads = [name for name in saved.architectures or () if name.endswith(_TASK_HEADS)]
    if any(not name.endswith(head) for name in saved_heads) or (saved_heads and saved.id2label != config.id2label):
        missing |= {key for key in model.state_dict() if not key.startswith(f"{model.base_model_prefix}.")}
    weights = {key: value.numpy() for key, value in model.state_dict().items() if key not in missing}
    return Base(config, weights)


def load_tokenizer(name: str) -> Any:
    """The tokenizer saved with a model. Raises `UserError` where there is none that an encoder can use."""
    return tokenizers.load_tokenizer(model_folder(name))


def build_model(base: Base, task: Task, seed: int) -> nn.Module:
    """The stock model of the task: saved weights where there are any, the rest drawn by `seed`. Float32, on the CPU."""
    with torch.random.fork_rng(devices=[]):  # transformers draws from the global stream
        torch.manual_seed(address(seed, "finetune/head"))
        model = (base.auto or auto_class(task)).from_config(base.config, dtype=torch.float32)
    own = model.state_dict()
    with torch.no_grad():
        for name, value in base.weights.items():
            own[name].copy_(torch.tensor(value))
    return model


def apply_masks(path: str, model: nn.Module) -> tuple[dict[str, Tensor], MaskFile]:
    """Prune `model` by the masks at `path`; the masks (bool, True: kept) by its own parameter names, and their file.

    Raises `UserError` where the masks are of another model.
    """
    file = load_masks(path, model)
    masks = fit(file, model)
    zero_pruned(model, masks)
    return masks, file


def mask_gradients(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the gradients of pruned weights, in place, so that they count in no norm and no moment."""
    for name, parameter in model.named_parameters():
        if name in masks and parameter.grad is not None:
            parameter.grad.mul_(masks[name])


_TASK_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
_HEADS = {"span": AutoModelForQuestionAnswering, "token_classification": AutoModelForTokenClassification}


def auto_class(task: Task) -> Any:
    """The stock class of models with the head of a task."""
    return _HEADS.get(task.kind, AutoModelForSequenceClassification)


def head_settings(task: Task) -> dict[str, Any]:
    """What a Hugging Face configuration says of a task's head: its labels by name."""
    if task.kind == "span":
        return {}
    id2label = dict(enumerate(["score"] if task.kind == "regression" else task.labels))
    settings = {"id2label": id2label, "label2id": {name: n for n, name in id2label.items()}}
    if task.kind == "token_classification":
        return settings
    kind = "regression" if task.kind == "regression" else "single_label_classification"
    return {**settings, "problem_type": kind}
