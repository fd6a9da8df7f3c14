"""Attention that sees no later token, in encoders that were made to see all of them.

A mask of four dimensions takes the place of the padding mask: transformers hand it on to the attention as it is.
"""

from typing import Any

import torch
from torch import Tensor

from mlpt.errors import UserError
from mlpt.models.config import METALMO
from mlpt.objectives.base import Inputs

_PROBE = 8  # tokens of the sequence on which causality is checked
Mask = Tensor | dict[str, Tensor]


def causal_mask(input_ids: Tensor, attention_mask: Tensor | None, config: Any) -> Mask:
    """What `attention_mask` of an encoder must be so that a position sees itself and the real tokens before it.

    input_ids       (batch, length). attention_mask: (batch, length) bool, True at real tokens; None: all are.

    A position without any real token before it (padding in front) sees itself, so that no row of the softmax is empty.
    Architectures with windows of attention get a mask for each of their two kinds of layers.
    """
    batch, length = input_ids.shape
    place = torch.arange(length, device=input_ids.device)
    behind = place[:, None] - place[None, :]  # (length, length): how far a key lies behind its query
    seen = (behind >= 0).expand(batch, length, length)
    if attention_mask is not None:
        seen = seen & (attention_mask[:, None, :].bool() | (behind == 0))
    full = _as_taken(seen, config)
    if getattr(config, "layer_types", None) is None or not getattr(config, "sliding_window", None):
        return full
    near = _as_taken(seen & (behind <= config.sliding_window), config)
    return {"full_attention": full, "sliding_attention": near}


def _as_taken(seen: Tensor, config: Any) -> Tensor:
    """(batch, 1, length, length): bool for fused attention, an addend of the scores for the written-out one."""
    seen = seen.unsqueeze(1)
    if config.model_type == METALMO or config._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)


@torch.no_grad()
def check_causal(encoder: Any) -> None:
    """Raise `UserError` unless later tokens leave the states of `encoder` (an `Encoder`) at earlier ones as they are.

    Some architectures mix positions by more than attention, or read their mask in another way.
    """
    name = encoder.config.model_type
    ids = torch.arange(2 * _PROBE).view(2, _PROBE) % encoder.config.vocab_size
    ids[1, : _PROBE // 2] = ids[0, : _PROBE // 2]  # two texts that begin alike
    was_training = encoder.training
    encoder.eval()
    try:
        states = encoder.hidden(Inputs(ids.to(next(encoder.parameters()).device), causal=True))
        apart = (states[0, : _PROBE // 2] - states[1, : _PROBE // 2]).abs().max()
        alike = bool(apart <= 1e-4 * states.abs().max())  # more than rounding
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"objective clm needs attention that looks back alone, which '{name}' does not take "
            f"({reason[0] if reason else type(error).__name__}): leave clm out, or take bert, roberta or modernbert"
        ) from error
    finally:
        encoder.train(was_training)
    if not alike:
        raise UserError(
            f"objective clm needs attention that looks back alone, and '{name}' shows earlier positions later tokens: "
            "leave clm out, or take bert, roberta or modernbert"
        )
