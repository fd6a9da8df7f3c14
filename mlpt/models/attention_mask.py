"""Which tokens a position attends to: real ones; of causal inputs none later; in packed blocks those of its document.

Encoders were made to see a whole row. A mask of four dimensions takes the place of their padding mask: transformers
hand it on to the attention as it is.

Positions are not counted anew in each document. Rotary and relative ones only ever tell distances, which stay as they
are, so that a document has the states that it would have alone. Learned absolute ones tell where in the block a
document stands, as they do where blocks are attended to whole (RoBERTa's FULL-SENTENCES): each row of their table is
trained by one token a block, those too that only texts longer than most documents reach.
"""

from typing import Any

import torch
from torch import Tensor

from mlpt.errors import UserError
from mlpt.models.config import METALMO
from mlpt.objectives.base import Inputs

_PROBE = 8  # tokens of the texts on which an architecture is tried
_FIRST, _SECOND = slice(_PROBE // 2), slice(_PROBE // 2, None)
Mask = Tensor | dict[str, Tensor]


def attention_mask(inputs: Inputs, config: Any) -> Mask | None:
    """What `attention_mask` of an encoder with this transformers `config` must be.

    Inputs that are neither causal nor of several documents keep their own, (batch, length) or None, with which
    transformers may choose a kernel that needs no mask. A position without any real token to see (padding in front)
    sees itself, so that no row of the softmax is empty. Architectures with windows of attention get a mask for each of
    their two kinds of layers.
    """
    if not inputs.causal and inputs.documents is None:
        return inputs.attention_mask
    batch, length = inputs.input_ids.shape
    place = torch.arange(length, device=inputs.input_ids.device)
    behind = place[:, None] - place[None, :]  # (length, length): how far a key lies behind its query
    seen = behind >= 0 if inputs.causal else torch.ones_like(behind, dtype=torch.bool)
    seen = seen.expand(batch, length, length)
    if inputs.documents is not None:
        seen = seen & (inputs.documents[:, :, None] == inputs.documents[:, None, :])
    if inputs.attention_mask is not None:
        seen = seen & (inputs.attention_mask[:, None, :].bool() | (behind == 0))
    full = _as_taken(seen, config)
    if getattr(config, "layer_types", None) is None or not getattr(config, "sliding_window", None):
        return full
    near = _as_taken(seen & (behind.abs() <= config.sliding_window), config)
    return {"full_attention": full, "sliding_attention": near}


def _as_taken(seen: Tensor, config: Any) -> Tensor:
    """(batch, 1, length, length): bool for fused attention, an addend of the scores for the written-out one."""
    seen = seen.unsqueeze(1)
    if config.model_type == METALMO or config._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)


def check_causal(encoder: Any) -> None:
    """Raise `UserError` unless later tokens leave the states of `encoder` (an `Encoder`) at earlier ones as they are.

    Some architectures mix positions by more than attention, or read their mask in another way.
    """
    wanted = "objective clm needs attention that looks back alone"
    inputs = Inputs(_probe(encoder.config), causal=True)
    _check(encoder, inputs, _FIRST, wanted, "shows earlier positions later tokens", "leave clm out")


def check_within_documents(encoder: Any) -> None:
    """Raise `UserError` unless the states of a document are the same whatever stands before it or behind it."""
    wanted = "model.attend_within=document needs attention that stays within a document"
    documents = (torch.arange(_PROBE) >= _PROBE // 2).long().expand(2, -1)
    first = _probe(encoder.config)
    for ids, alike in ((first, _FIRST), (first.flip(1), _SECOND)):
        inputs = Inputs(ids, documents=documents)
        _check(encoder, inputs, alike, wanted, "shows a document tokens of another", "leave it out")


def _probe(config: Any) -> Tensor:
    """(2, _PROBE) int64: two texts without padding that begin alike."""
    ids = torch.arange(2 * _PROBE)
    if config.pad_token_id is not None:
        ids = ids + (ids >= config.pad_token_id)
    ids = ids.view(2, _PROBE) % config.vocab_size
    ids[1, _FIRST] = ids[0, _FIRST]
    return ids


@torch.no_grad()
def _check(encoder: Any, inputs: Inputs, alike: slice, wanted: str, found: str, advice: str) -> None:
    """Raise `UserError` unless the states of both texts are equal at the positions `alike`."""
    name = encoder.config.model_type
    was_training = encoder.training
    encoder.eval()
    try:
        states = encoder.hidden(inputs.to(next(encoder.parameters()).device))  # (2, _PROBE, hidden)
        apart = (states[0, alike] - states[1, alike]).abs().max()
        equal = bool(apart <= 1e-4 * states.abs().max())  # but for rounding
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{wanted}, which '{name}' does not take ({reason[0] if reason else type(error).__name__}): {advice}, "
            "or take bert, roberta or modernbert"
        ) from error
    finally:
        encoder.train(was_training)
    if not equal:
        raise UserError(f"{wanted}, and '{name}' {found}: {advice}, or take bert, roberta or modernbert")
