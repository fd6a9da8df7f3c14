"""An output layer that computes a multiple of 64 logits, whose rows a GPU's matrix units take without a remainder.

What is added lives within one forward pass: weights, checkpoints and saved models have the vocabulary's own rows, and
no loss sees another logit.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear, pad

_MULTIPLE = 64


class PaddedDecoder(nn.Linear):
    """nn.Linear with rows of zeros behind its own in the product, and without their outputs."""

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.shape[0]
        missing = -rows % _MULTIPLE
        bias = None if self.bias is None else pad(self.bias, (0, missing))
        return linear(input, pad(self.weight, (0, 0, 0, missing)), bias)[..., :rows]


def pad_decoder(backbone: Any) -> None:
    """Let the output layer of `backbone`, a stock `...ForMaskedLM` module, compute a multiple of 64 logits, in place.

    One whose rows are a multiple already, and one that is no plain linear layer (masked weights), stay as they are.
    """
    decoder = backbone.get_output_embeddings()
    if type(decoder) is nn.Linear and decoder.weight.shape[0] % _MULTIPLE:
        decoder.__class__ = PaddedDecoder
