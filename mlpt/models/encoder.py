"""An encoder with one head for each objective, around a stock Hugging Face masked language model."""

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig
from transformers.utils import cached_file

from mlpt.data.reach import hub_lookup
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.attention_mask import attention_mask, check_causal, check_within_documents
from mlpt.models.config import (
    ModelConfig,
    attends_within_documents,
    check_pretrained,
    dropout_values,
    fitting_options,
    hugging_face_config,
    register_metalmo,
)
from mlpt.models.language_head import check_head, token_logits
from mlpt.models.masked import dense_state
from mlpt.models.quiet import quiet
from mlpt.models.saved_tokenizer import save_tokenizer
from mlpt.objectives.base import Inputs, Objective
from mlpt.randomness import address
from mlpt.storage.memory import align_weights
from mlpt.storage.stock import read_stock

HEADS_FILE = "heads.safetensors"


class Encoder(nn.Module):
    """`backbone` (the stock `...ForMaskedLM` module, decoder tied) and `heads` (one for each objective that has one).

    `forward` is the only way to a loss, so that DDP, `torch.compile` and `higher` can wrap the module.
    """

    def __init__(self, backbone: Any, objectives: Mapping[str, Objective]):
        super().__init__()
        self.backbone = backbone
        self.config: PreTrainedConfig = backbone.config
        self.objectives = dict(objectives)
        made = {name: objective.head(backbone.config) for name, objective in self.objectives.items()}
        self.heads = nn.ModuleDict({name: head for name, head in made.items() if head is not None})
        self.heads.apply(self._initialise)

    def forward(self, objective: str, inputs: Inputs) -> Tensor:
        """Scalar float32 loss of `inputs` in nats."""
        return self.objectives[objective].loss(self, inputs)

    def hidden(self, inputs: Inputs) -> Tensor:
        """Last hidden states, (batch, length, hidden)."""
        return self.backbone.base_model(inputs.input_ids, **self._attended(inputs))[0]

    def hidden_states(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Embedding output and the output of every layer, each (batch, length, hidden)."""
        return self.backbone.base_model(
            inputs.input_ids, output_hidden_states=True, **self._attended(inputs)
        ).hidden_states

    def token_logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) -> (n, vocabulary), by the architecture's own head."""
        return token_logits(self.backbone, hidden)

    def save(self, folder: str | os.PathLike[str], tokenizer: Any = None) -> None:
        """Write a folder that stock `AutoModel` and `AutoModelForMaskedLM` load; other heads in heads.safetensors.

        Masked weights are written dense: masks are artefacts of their own (`mlpt.sparsity.artefacts`).
        """
        self.backbone.save_pretrained(folder, state_dict=dense_state(self.backbone))
        if len(self.heads):
            weights = {name: weight.detach().contiguous() for name, weight in self.heads.state_dict().items()}
            save_file(weights, Path(folder) / HEADS_FILE, metadata={"objectives": json.dumps(list(self.heads))})
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder, self.config)

    def check_causal(self) -> None:
        """Raise `UserError` where inputs can't be causal in this architecture."""
        check_causal(self)

    def _attended(self, inputs: Inputs) -> dict[str, Any]:
        """Arguments beside the ids. Token types only where there are any and the architecture tells them apart."""
        typed = inputs.token_types is not None and getattr(self.config, "type_vocab_size", 0) > 1
        mask = attention_mask(inputs, self.config)
        return {"attention_mask": mask} | ({"token_type_ids": inputs.token_types} if typed else {})

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=getattr(self.config, "initializer_range", 0.02))
            nn.init.zeros_(module.bias)


def build_encoder(
    config: ModelConfig,
    vocabulary: Vocabulary,
    objectives: Mapping[str, Objective],
    max_length: int,
    seed: int,
) -> Encoder:
    """A new encoder for blocks of `max_length` tokens; equal seeds give equal weights, float32, on the CPU.

    A pretrained model keeps the heads that were trained with it; an objective without one gets a new head.
    Raises `UserError` when the configuration, the pretrained model and the vocabulary do not fit together.
    """
    with torch.random.fork_rng(devices=[]):  # transformers draws starting weights from the global stream
        torch.manual_seed(address(seed, "model"))
        if config.pretrained is not None:
            backbone = _load_backbone(config.pretrained, config.attention, config.dropout)
            check_pretrained(backbone.config, vocabulary, max_length, config.pretrained)
        else:
            backbone = _new_backbone(config, vocabulary, max_length)
        check_head(backbone)
        encoder = Encoder(backbone, objectives)
        with fitting_options(config):
            _try_a_row(encoder, vocabulary, max_length)
    if config.attend_within == "document":
        check_within_documents(encoder)
    if config.attend_within == "document" or attends_within_documents(backbone.config):
        backbone.config.attend_within = config.attend_within  # and is saved with the model
    if config.pretrained is not None and config.objective_heads == "keep":
        _keep_heads(encoder.heads, config.pretrained)
    return encoder.train()


def load_encoder(
    folder: str | os.PathLike[str],
    objectives: Mapping[str, Objective],
    attention: str | None = None,
    complete: bool = False,
) -> Encoder:
    """The encoder that `Encoder.save` wrote to `folder`, with the heads of `objectives`.

    attention  an implementation; None: the fastest that the architecture has.
    complete   refuse a folder that lacks some of the masked language model, which is otherwise drawn anew.

    Raises `UserError` when the folder holds no model, or no head for one of the objectives that need one.
    """
    backbone = _load_backbone(os.fspath(folder), attention, complete=complete)
    if complete:
        check_head(backbone)
    encoder = Encoder(backbone, objectives)
    if len(encoder.heads):
        _load_heads(encoder.heads, Path(folder) / HEADS_FILE)
    return encoder


def _new_backbone(config: ModelConfig, vocabulary: Vocabulary, max_length: int) -> Any:
    made = hugging_face_config(config, vocabulary, max_length)
    with fitting_options(config):
        try:
            return AutoModelForMaskedLM.from_config(made, attn_implementation=config.attention, dtype=torch.float32)
        except ValueError as error:
            _check_attention(error, config.architecture, config.attention)
            raise


@torch.no_grad()
def _try_a_row(encoder: Encoder, vocabulary: Vocabulary, max_length: int) -> None:
    """The states of one row, since some architectures find out what they lack when they run."""
    encoder.eval().hidden(Inputs(torch.full((1, max_length), vocabulary.mask)))


def _check_attention(error: ValueError, name: str | None, attention: str | None) -> None:
    """Raise `UserError` where transformers has refused the kind of attention."""
    if "attention implementation" in str(error):
        raise UserError(f"'{name}' has no {attention} attention; use attention=eager") from error


def _load_backbone(name: str, attention: str | None, dropout: float | None = None, complete: bool = False) -> Any:
    register_metalmo()  # the folder may hold one
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():  # no hub name looks like this
        raise UserError(f"there is no folder '{name}': give a saved model's folder or a hub name")
    try:
        with hub_lookup(name), quiet() if complete else nullcontext():
            config = AutoConfig.from_pretrained(name)
            config.update(dropout_values(config, dropout))
            backbone, drawn = read_stock(AutoModelForMaskedLM, name, config=config, attn_implementation=attention)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, ValueError):
            _check_attention(error, name, attention)
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load a masked language model from '{name}': give a folder with config.json and "
            f"model.safetensors, or a hub name with the network up ({reason})"
        ) from error
    if complete and drawn:
        raise UserError(
            f"'{name}' has no trained language-modelling head ({drawn[0]} is missing); give a masked language model"
        )
    align_weights(backbone)
    return backbone


def _keep_heads(heads: nn.ModuleDict, name: str) -> None:
    """Give `heads` the weights that a model of ours, in a folder or on the hub, was saved with, where it has them."""
    try:
        file = cached_file(name, HEADS_FILE, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # a hub that cannot be reached, of whose model only the weights are cached
        file = None
    saved = {} if file is None else _head_weights(Path(file))
    for objective, head in heads.items():
        prefix = f"{objective}."
        own = {key.removeprefix(prefix): weight for key, weight in saved.items() if key.startswith(prefix)}
        try:
            if own:
                head.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(
                f"the {objective} head of {name} does not fit objectives.{objective} as it is set here: set it as it "
                "was there, or draw new heads by model.objective_heads=new"
            ) from error


def _head_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable safetensors file: save the model again") from error


def _load_heads(heads: nn.ModuleDict, file: Path) -> None:
    weights = _head_weights(file) if file.exists() else {}
    missing = [name for name in heads if not any(key.startswith(f"{name}.") for key in weights)]
    if missing:
        raise UserError(f"{file.parent} has no head for {', '.join(missing)}: train it with that objective first")
    wanted = {key: weight for key, weight in weights.items() if key.split(".")[0] in heads}
    try:
        heads.load_state_dict(wanted)
    except RuntimeError as error:
        raise UserError(f"the heads in {file} do not fit the model beside them: save both again") from error
