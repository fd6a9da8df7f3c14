"""Applying an architecture's own masked-language-modelling head to hidden states gathered from anywhere in a batch."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput


def token_logits(backbone: Any, hidden: Tensor) -> Tensor:
    """(n, hidden) -> (n, vocabulary) by the head of `backbone`, a stock `...ForMaskedLM` module."""
    return _HEADS.get(backbone.config.model_type, _any_head)(backbone, hidden)


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


@contextmanager
def _answering(encoder: nn.Module, hidden: Tensor):
    encoder.forward = lambda *_, **__: BaseModelOutput(last_hidden_state=hidden)
    try:
        yield
    finally:
        del encoder.forward  # the class's own is found again
