"""Applying an architecture's own masked-language-modelling head to hidden states gathered from anywhere in a batch."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from mlpt.errors import UserError, one_line


def token_logits(backbone: Any, hidden: Tensor) -> Tensor:
    """(n, hidden) -> (n, vocabulary) by the head of `backbone`, a stock `...ForMaskedLM` module."""
    return _HEADS.get(backbone.config.model_type, _any_head)(backbone, hidden)


def check_head(backbone: Any) -> None:
    """Raise `UserError` where `token_logits` cannot apply the head of `backbone`."""
    model_type = backbone.config.model_type
    if model_type in _HEADS:
        return
    if backbone.config.is_encoder_decoder:
        raise UserError(f"a '{model_type}' is more than an encoder; bert, roberta, electra and modernbert are tested")
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # a head may have dropout
            token_logits(backbone, torch.zeros(2, backbone.config.hidden_size))
    except Exception as error:  # of an architecture whose forward pass asks for more than hidden states
        raise UserError(
            f"the language-modelling head of a '{model_type}' cannot be applied to hidden states "
            f"({type(error).__name__}: {one_line(error)[:200]}); bert, roberta, electra and modernbert are tested"
        ) from error


def _bert(backbone: Any, hidden: Tensor) -> Tensor:
    return backbone.cls(hidden)


def _roberta(backbone: Any, hidden: Tensor) -> Tensor:
    return backbone.lm_head(hidden)


def _electra(backbone: Any, hidden: Tensor) -> Tensor:
    return backbone.generator_lm_head(backbone.generator_predictions(hidden))


def _modernbert(backbone: Any, hidden: Tensor) -> Tensor:
    return backbone.decoder(backbone.head(hidden))


def _distilbert(backbone: Any, hidden: Tensor) -> Tensor:
    transformed = backbone.activation(backbone.vocab_transform(hidden))
    return backbone.vocab_projector(backbone.vocab_layer_norm(transformed))


def _albert(backbone: Any, hidden: Tensor) -> Tensor:
    return backbone.predictions(hidden)


def _metalmo(backbone: Any, hidden: Tensor) -> Tensor:
    return backbone.head(hidden)


_HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "electra": _electra,
    "modernbert": _modernbert,
    "distilbert": _distilbert,
    "albert": _albert,
    "metalmo": _metalmo,
}


def _any_head(backbone: Any, hidden: Tensor) -> Tensor:
    """Any other architecture: its own forward, whose encoder answers with `hidden` as a batch of one row."""
    one_row = hidden.unsqueeze(0)  # (1, n, hidden)
    with _answering(backbone.base_model, one_row):
        return backbone(inputs_embeds=one_row).logits.squeeze(0)


class _HiddenAlone(BaseModelOutput):
    """Whatever else an architecture's encoder would answer (Longformer's global attentions, ...) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _answering(encoder: nn.Module, hidden: Tensor):
    encoder.forward = lambda *_, **__: _HiddenAlone(last_hidden_state=hidden)
    try:
        yield
    finally:
        del encoder.forward  # the class's own is found again
