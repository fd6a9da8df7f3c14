"""Contrastive sentence embeddings (SimCSE, Gao et al., 2021, as MOMETAS uses it): two dropout views of a text agree."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpt.data.batch import Batch
from mlpt.objectives.base import Inputs, Objective, PretrainingModel, attention_mask_of
from mlpt.settings import Settings

TEMPERATURE = 0.05


class ContrastiveSentences(Objective):
    """Tell one's own other view from all other rows of the micro-batch.

    In evaluation mode there is no dropout, so both views are identical and the loss is soon near 0 (known of the
    published system; specs 3.5).
    """

    name = "cse"

    class Config(Settings):
        """rows: `half` pairs the first floor(batch / 2) texts, as published, so that a step costs what a step of
        any other objective costs (the default); `all` pairs every text: twice the rows, more negatives, twice the
        cost. A micro-batch of one text is paired in either case."""

        rows: Literal["half", "all"] = "half"

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        tokens = batch.tokens  # (batch, length)
        texts = len(tokens) if self.config.rows == "all" else max(1, len(tokens) // 2)
        pairs = tokens[:texts].repeat_interleave(2, dim=0)  # (2 * texts, length): rows 2k and 2k + 1 are one text
        documents = None if batch.documents is None else batch.documents[:texts].repeat_interleave(2, dim=0)
        return Inputs(pairs, attention_mask_of(pairs, self.vocabulary.pad), documents=documents)

    def head(self, encoder_config: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(encoder_config.hidden_size, encoder_config.hidden_size), nn.Tanh())

    def loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        first = model.hidden(inputs)[:, 0]  # (rows, hidden)
        return contrastive_loss(model.heads[self.name](first))


def contrastive_loss(pooled: Tensor) -> Tensor:
    """Cross-entropy of cosine similarities / 0.05 of `pooled` (rows, hidden), where row i's target is row i xor 1."""
    # Divided by 0.05, bf16's third digit would already be noise of tenths: the scores stay float32 under autocast.
    with torch.autocast(pooled.device.type, enabled=False):
        unit = F.normalize(pooled.float(), dim=1)
        similarity = unit @ unit.T / TEMPERATURE  # (rows, rows)
    itself = torch.eye(len(pooled), dtype=torch.bool, device=pooled.device)
    target = torch.arange(len(pooled), device=pooled.device) ^ 1
    return F.cross_entropy(similarity.masked_fill(itself, float("-inf")), target)
