"""What added- and deleted-token detection share: a two-class head and which positions it is trained on."""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from mlpt.objectives.base import IGNORED, Inputs, Objective, PretrainingModel, attention_mask_of
from mlpt.objectives.prediction import mean_cross_entropy, predicted
from mlpt.settings import Settings


class TokenDetection(Objective):
    """Say of every token whether something was changed before it; [CLS] and [SEP] are judged too."""

    class Config(Settings):
        """probability: chance of a change at a position.

        padding: `recomputed` makes the attention mask of the corrupted tokens and leaves padding out of the loss;
        `published` keeps the mask of the tokens before corruption and trains on every position, padding included, as
        the MOMETAS code does (specs, MO-2). Default `recomputed`: the other hides shifted text and rewards zeros.
        """

        probability: float = Field(default=0.15, ge=0, le=1)
        padding: Literal["recomputed", "published"] = "recomputed"

    def head(self, encoder_config: Any) -> nn.Module:
        return nn.Linear(encoder_config.hidden_size, 2)

    def inputs(self, tokens: Tensor, corrupted: Tensor, labels: Tensor, documents: Tensor | None = None) -> Inputs:
        """Inputs of `corrupted`, its `labels` and `documents` (each (batch, length) int64), made from `tokens`."""
        pad = self.vocabulary.pad
        if self.config.padding == "published":
            mask = attention_mask_of(tokens, pad)
        else:
            mask = attention_mask_of(corrupted, pad)
            if mask is not None:
                labels = labels.masked_fill(~mask, IGNORED)
        return replace(Inputs.from_labels(corrupted, labels, mask), documents=documents)

    def capacity(self, tokens: int) -> int:
        return tokens

    def loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        hidden = model.hidden(inputs).flatten(0, 1)  # (batch * length, hidden)
        logits = model.heads[self.name](hidden).float()  # (batch * length, 2)
        positions, targets = predicted(inputs)
        return mean_cross_entropy(logits.index_select(0, positions), targets, inputs.weights)
