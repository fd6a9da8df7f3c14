"""Causal language modelling with an encoder's own weights: attention looks back alone, and every token is predicted.

Masked and causal batches of the same weights, as GPT-BERT has them (Charpentier and Samuel, 2024); there masked tokens
are predicted one position earlier too, here each objective reads the language head where it is used to.
"""

from typing import Any

import torch
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.objectives.base import Inputs, Objective, PretrainingModel, attention_mask_of
from mlpt.objectives.prediction import predicted_tokens_loss


class CausalLM(Objective):
    """Predict each token from those before it: the next real token, within a document.

    What mlm never masks (special and unknown tokens) is not predicted, and neither is the first token of a document
    that follows another in a block: at a [SEP] nothing is known of what comes next.
    """

    name = "clm"

    def prepare(self, model: Any) -> None:
        """Raises `UserError` for an architecture whose attention can't be made to look back alone."""
        model.check_causal()

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        tokens = batch.tokens  # (batch, length)
        wanted = torch.zeros(tokens.shape, dtype=torch.bool)
        wanted[:, :-1] = ~self.vocabulary.is_special(tokens[:, 1:]) & (tokens[:, :-1] != self.vocabulary.sep)
        positions = wanted.view(-1).nonzero().squeeze(1)  # (n,), where the token before the predicted one stands
        targets = tokens.reshape(-1)[positions + 1]  # never in the next row: a row's last position predicts nothing
        mask = attention_mask_of(tokens, self.vocabulary.pad)
        return Inputs(tokens, mask, positions, targets, causal=True, documents=batch.documents)

    def capacity(self, tokens: int) -> int:
        return tokens

    def loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        return predicted_tokens_loss(model, inputs)
