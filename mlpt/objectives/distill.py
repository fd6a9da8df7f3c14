"""Distillation: hold the hidden states of a masked (or otherwise changed) encoder to those of its dense teacher.

TAMT-KD (Liu et al., NAACL 2022): the mean over layers of 1 - cos(student, teacher); attention and relation terms after
TinyBERT (Jiao et al., 2020). The embedding output is left out.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import field_validator
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel

from mlpt.data.batch import Batch
from mlpt.data.reach import hub_lookup
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.objectives.base import Inputs, Objective, attention_mask_of
from mlpt.objectives.mlm import MaskingConfig, random_tokens, replacements
from mlpt.settings import Settings
from mlpt.storage.memory import align_weights
from mlpt.storage.stock import read_stock

BLOCKED = -100.0  # raw attention scores at or below it count as 0, as in TinyBERT


class Distillation(Objective):
    """Mean distance between the student's and the teacher's states of the same inputs; see `Config`."""

    name = "distill"

    class Config(Settings):
        """teacher        folder or hub name; None: the model as it starts, without masks.
        hidden            distance of hidden states: `cosine` (1 - cos), `mse`, or `none`.
        positions         `all` tokens, or the first alone (`cls`).
        layers            `all`, `last`, or layer numbers from 1; teacher layer l goes with student layer l.
        attention         add the MSE of the raw (pre-softmax) attention scores.
        relation          add the MSE of Gram matrices: between the `token`s of a text, or between the texts (`sample`,
                          each the mean of its tokens) of a batch.
        padding           `out` (default): padded positions are in no loss; `in`: they are, as in the published code.
        teacher_mode      `eval` (default): a fixed target; `train`: dropout as in the student, independently drawn,
                          as in the published training, whose teacher is never put in eval mode. Evaluation is
                          always in eval mode.
        corruption        `one_token`: one non-special token a text is corrupted as in masked language modelling, as
                          the published data generator does; `none`: plain texts.
        token_types       `zero`; `pair`: 1 after the first separator, as published for BERT. It suits the pairs of
                          `data.packing=kd`, and an encoder that has two token types.
        """

        teacher: str | None = None
        hidden: Literal["cosine", "mse", "none"] = "cosine"
        positions: Literal["all", "cls"] = "all"
        layers: Literal["all", "last"] | tuple[int, ...] = "all"
        attention: bool = False
        relation: Literal["none", "token", "sample"] = "none"
        padding: Literal["out", "in"] = "out"
        teacher_mode: Literal["eval", "train"] = "eval"
        corruption: Literal["one_token", "none"] = "one_token"
        token_types: Literal["zero", "pair"] = "zero"
        masking: MaskingConfig = MaskingConfig()

        @field_validator("layers")
        @classmethod
        def _numbered_from_one(cls, layers: Any) -> Any:
            if not isinstance(layers, str) and (not layers or min(layers) < 1):
                raise ValueError("layers are numbered from 1; the embedding output is never distilled")
            return layers

        def model_post_init(self, context: Any) -> None:
            if self.hidden == "none" and not self.attention and self.relation == "none":
                raise ValueError("nothing to distil: set hidden, attention or relation")

    def __init__(self, config: Config, vocabulary: Vocabulary):
        super().__init__(config, vocabulary)
        self._teacher: Any = None

    @classmethod
    def saved_models(cls, settings: Mapping[str, Any]) -> list[str]:
        return [settings["teacher"]] if settings.get("teacher") else []

    @classmethod
    def refuses(cls, settings: Mapping[str, Any], config: Any) -> str | None:
        if config.model.attend_within == "document":
            return "its teacher attends to whole blocks: leave it out, or model.attend_within=document"
        return None

    def prepare(self, model: Any) -> None:
        if self.config.teacher is None:
            self._teacher = dense_copy(model.backbone).base_model
        else:
            self._teacher = _load_teacher(self.config.teacher)
            for parameter in self._teacher.parameters():
                parameter.requires_grad_(False)
        ours, theirs = model.config.num_hidden_layers, self._teacher.config.num_hidden_layers
        if ours != theirs:
            raise UserError(f"the teacher has {theirs} layers and the model {ours}: layers are distilled one to one")
        self._layers = chosen_layers(self.config.layers, ours)
        if self.config.token_types == "pair" and getattr(model.config, "type_vocab_size", 0) < 2:
            raise UserError(f"a {model.config.model_type} has no second token type; use token_types: zero")

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        tokens = batch.tokens  # (batch, length)
        mask = attention_mask_of(tokens, self.vocabulary.pad)
        types = second_texts(tokens, self.vocabulary) if self.config.token_types == "pair" else None
        if self.config.corruption == "none":
            return Inputs(tokens, mask, token_types=types)
        ordinary = ~self.vocabulary.is_special(tokens)  # (batch, length)
        draw = torch.rand(tokens.shape, generator=generator).masked_fill(~ordinary, -1.0)
        columns = draw.argmax(1)  # (batch,) of one ordinary token each
        rows = ordinary.any(1).nonzero().squeeze(1)  # texts that have any
        positions = rows * tokens.shape[1] + columns[rows]  # (n,)
        targets = tokens.reshape(-1)[positions]
        fate = torch.rand(len(positions), generator=generator)
        drawn = random_tokens(len(positions), self.vocabulary, self.config.masking.random_tokens, generator)
        input_ids = tokens.reshape(-1).clone()
        input_ids[positions] = replacements(targets, fate, drawn, self.vocabulary.mask, self.config.masking)
        return Inputs(input_ids.view(tokens.shape), mask, positions, targets, types)

    def loss(self, model: Any, inputs: Inputs) -> Tensor:
        teacher = self._ready_teacher(model, inputs.input_ids.device)
        states = model.hidden_states(inputs)  # embedding output and each layer's, (batch, length, hidden)
        with torch.no_grad():
            typed = {} if inputs.token_types is None else {"token_type_ids": inputs.token_types}
            targets = teacher(
                inputs.input_ids, attention_mask=inputs.attention_mask, output_hidden_states=True, **typed
            ).hidden_states
        real = inputs.attention_mask if self.config.padding == "out" else None
        terms = []
        for layer in self._layers:
            if self.config.hidden != "none":
                terms.append(hidden_distance(states[layer], targets[layer], self.config.hidden, self._seen(real)))
            if self.config.relation != "none":
                terms.append(relation_distance(states[layer], targets[layer], self.config.relation, real))
            if self.config.attention:
                student = attention_scores(model.backbone.base_model, layer, states[layer - 1], inputs.attention_mask)
                with torch.no_grad():
                    fixed = attention_scores(teacher, layer, targets[layer - 1], inputs.attention_mask)
                terms.append(attention_distance(student, fixed, real))
        return torch.stack(terms).sum() / len(self._layers)

    def _seen(self, real: Tensor | None) -> Tensor | slice | None:
        return slice(0, 1) if self.config.positions == "cls" else real

    def _ready_teacher(self, model: Any, device: torch.device) -> Any:
        if self._teacher is None:
            raise UserError("distill has no teacher yet: build the model, then call prepare(model) once")
        self._teacher.to(device)
        return self._teacher.train(model.training and self.config.teacher_mode == "train")


def second_texts(tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(batch, length) int64, 1 where `tokens` come after the first separator and are no padding."""
    separators = (tokens == vocabulary.sep).long()
    after = separators.cumsum(1) - separators > 0
    return (after & (tokens != vocabulary.pad)).long()


def dense_copy(backbone: nn.Module) -> Any:
    """A frozen copy of `backbone` without masks. Frozen weights are shared with the original, not copied."""
    shared = {
        id(parameter): parameter
        for name, parameter in backbone.named_parameters()
        if not parameter.requires_grad or name.endswith("scores")
    }
    teacher = copy.deepcopy(backbone, shared)
    for module in list(teacher.modules()):
        unmask = getattr(module, "unmask", None)
        if callable(unmask):
            unmask()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


def _load_teacher(name: str) -> Any:
    try:
        with hub_lookup(name):
            teacher, _ = read_stock(AutoModel, name)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load the teacher '{name}': give a model folder or a hub name ({reason})") from error
    align_weights(teacher)
    return teacher


def chosen_layers(layers: str | tuple[int, ...], depth: int) -> list[int]:
    """Layer numbers from 1 (0 would be the embedding output); raises `UserError` for layers that are not there."""
    if layers == "all":
        return list(range(1, depth + 1))
    if layers == "last":
        return [depth]
    numbers = [int(layer) for layer in layers]
    if max(numbers) > depth:
        raise UserError(f"objectives.distill.layers names layer {max(numbers)}, and the model has {depth}")
    return numbers


def hidden_distance(
    student: Tensor, teacher: Tensor, kind: Literal["cosine", "mse"], real: Tensor | slice | None = None
) -> Tensor:
    """Mean over positions of 1 - cos, or of the squared difference, of two (batch, length, hidden) float tensors.

    real  (batch, length) bool: positions that count; a slice of positions; None: all of them, padding too.
    """
    student, teacher = student.float(), teacher.float()
    if isinstance(real, slice):
        student, teacher, real = student[..., real, :], teacher[..., real, :], None
    if kind == "cosine":
        distances = 1 - F.cosine_similarity(student, teacher, dim=-1)  # (batch, length)
    else:
        distances = (student - teacher).pow(2).mean(-1)
    return _mean(distances, real)


def relation_distance(
    student: Tensor, teacher: Tensor, kind: Literal["token", "sample"], real: Tensor | None = None
) -> Tensor:
    """MSE of Gram matrices / sqrt(hidden): between tokens (batch, length, length), or between texts (batch, batch)."""
    if kind == "sample":
        weights = torch.ones(student.shape[:2], device=student.device) if real is None else real.float()
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        pooled = [torch.einsum("bl,blh->bh", weights, states.float()) for states in (student, teacher)]
        grams = [states @ states.t() for states in pooled]
        pairs = None
    else:
        grams = [states.float() @ states.float().transpose(1, 2) for states in (student, teacher)]
        pairs = None if real is None else real.unsqueeze(2) & real.unsqueeze(1)
    return _mean((grams[0] - grams[1]).pow(2) / student.shape[-1], pairs)


def attention_scores(encoder: Any, layer: int, states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Raw scores Q K^T / sqrt(d) of `layer` (from 1), (batch, heads, length, length), from its input `states`.

    They are computed from the layer's own projections, so that any attention kernel may run in the model itself.
    Blocked entries (padded keys, and scores of at most BLOCKED) are 0.
    """
    try:
        attention = encoder.encoder.layer[layer - 1].attention.self
        split = (*states.shape[:2], -1, attention.attention_head_size)
        query, key = (part(states).view(split).transpose(1, 2) for part in (attention.query, attention.key))
    except AttributeError as error:
        raise UserError("only BERT- and RoBERTa-like models can distil attention; set attention=false") from error
    scores = (query @ key.transpose(2, 3)).float() / attention.attention_head_size**0.5
    scores = torch.where(scores <= BLOCKED, 0.0, scores)
    return scores if attention_mask is None else scores * attention_mask[:, None, None, :]


def attention_distance(student: Tensor, teacher: Tensor, real: Tensor | None = None) -> Tensor:
    """MSE of two (batch, heads, length, length) tensors; with `real` (batch, length), between real tokens only."""
    pairs = None if real is None else (real.unsqueeze(2) & real.unsqueeze(1)).unsqueeze(1).expand(student.shape)
    return _mean((student - teacher).pow(2), pairs)


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    if counted is None:
        return values.mean()
    weights = counted.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)
