"""Soft inputs and soft targets: a distribution over the vocabulary in place of each token id.

What a teacher writes can then be differentiated through (MetaLMO, Shen 2021: soft embedding and soft cross entropy).
Only the lookup of token embeddings is replaced; positions, token types and everything after are the stock model's own.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpt.errors import UserError
from mlpt.models.attention_mask import Mask
from mlpt.models.masked import MaskedEmbedding, binarise
from mlpt.objectives.base import IGNORED


def soft_embedding(probabilities: Tensor, table: Tensor, padding: int | None = None) -> Tensor:
    """The expected embedding `p @ E`, (..., hidden), in the dtype of `table`.

    probabilities  (..., vocabulary) float. A table with more rows (rounded up) is read by its first `vocabulary` rows.
    table          (rows, hidden) token embeddings.
    padding        a row that counts in the value and never gets a gradient; None: no such row.

    The gradient reaches `probabilities`, its column of the padding row too, and all other rows of `table`.
    Raises `ValueError` for distributions over more tokens than the table has.
    """
    size = probabilities.shape[-1]
    if size > len(table):
        raise ValueError(f"distributions over {size} tokens do not fit {len(table)} embeddings")
    rows = table[:size]
    if padding is not None and padding < size:
        fixed = torch.arange(size, device=table.device).unsqueeze(1) == padding  # (vocabulary, 1)
        rows = torch.where(fixed, rows.detach(), rows)
    return probabilities.to(rows.dtype) @ rows


def soft_cross_entropy(logits: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor:
    """`-sum(y log softmax(s)) / sum(y)` over the kept positions: a scalar of at least float32, in nats.

    logits, targets  (..., vocabulary) float, equal shapes; the gradient reaches both.
    keep             (...) bool, the positions that count; None: all.

    Where rows of `targets` are distributions, the divisor is the number of kept positions. Without any mass the loss
    is zero, with a gradient path.
    """
    if keep is not None:
        targets = targets * keep.unsqueeze(-1)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    mass = targets.sum(dtype=dtype)
    total = -(targets * F.log_softmax(logits.to(dtype), dim=-1)).sum()
    return total / torch.where(mass == 0, 1.0, mass)


def token_cross_entropy(logits: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
    """Mean cross entropy over the kept positions, of hard or soft targets: a scalar of at least float32, in nats.

    logits   (batch, length, vocabulary) float.
    targets  (batch, length) int64, or of the shape of `logits` for `soft_cross_entropy`.
    keep     (batch, length) bool. Where nothing is kept the loss is zero, with a gradient path.
    """
    if targets.is_floating_point():
        return soft_cross_entropy(logits, targets, keep)
    flat = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    total = F.cross_entropy(flat, torch.where(keep, targets, IGNORED).flatten(), reduction="sum", ignore_index=IGNORED)
    return total / keep.sum().clamp(min=1)


def embedding_table(module: nn.Embedding) -> tuple[Tensor, int | None]:
    """(rows, hidden) embeddings as they act, masked where they are masked, and the row without a gradient."""
    weight = module.weight
    if isinstance(module, MaskedEmbedding):
        weight = weight * binarise(module.scores, module.threshold)
    scale = getattr(module, "embed_scale", None)  # some architectures scale what they look up
    return weight if scale is None else weight * scale, module.padding_idx


def input_embeddings(backbone: Any, probabilities: Tensor) -> Tensor:
    """(batch, length, hidden): what a stock model of transformers takes as `inputs_embeds` for soft tokens."""
    table, padding = embedding_table(backbone.get_input_embeddings())
    return soft_embedding(probabilities, table, padding)


def soft_hidden(
    backbone: Any,
    probabilities: Tensor,
    attention_mask: Mask | None = None,
    token_types: Tensor | None = None,
) -> Tensor:
    """Last hidden states of a stock model, (batch, length, hidden).

    probabilities   (batch, length, vocabulary) float.
    attention_mask  (batch, length) bool, True at real tokens, or what `mlpt.models.attention_mask` makes of it.
                    Rows are padded on the right: there the positions that stock code counts for embeddings are
                    those that it counts for ids.
    token_types     (batch, length) int64; None: all zero.
    """
    typed = {} if token_types is None else {"token_type_ids": token_types}
    embedded = input_embeddings(backbone, probabilities)
    return backbone.base_model(inputs_embeds=embedded, attention_mask=attention_mask, **typed)[0]


@torch.no_grad()
def check_soft_inputs(backbone: Any, vocabulary_size: int) -> None:
    """Raise `UserError` where a stock model cannot take soft inputs: a row of one-hot distributions must give what the
    same ids give. Some architectures take no embeddings, or treat them otherwise than those of ids."""
    name = backbone.config.model_type
    refusal = UserError(
        f"'{name}' takes no soft inputs; choose bert, roberta or modernbert, or a teacher that writes hard samples"
    )
    body = backbone.base_model
    if "inputs_embeds" not in inspect.signature(body.forward).parameters:
        raise refusal
    device = next(body.parameters()).device
    ids = torch.arange(vocabulary_size - 4, vocabulary_size, device=device).clamp(min=0).unsqueeze(0)  # (1, 4)
    training = body.training
    body.eval()
    hard = body(ids)[0]
    try:
        soft = soft_hidden(backbone, F.one_hot(ids, vocabulary_size).to(hard.dtype))
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise refusal from error
    finally:
        body.train(training)
    if not torch.allclose(hard, soft, atol=1e-3):
        raise refusal
