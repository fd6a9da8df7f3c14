"""Settings of an objective that a meta-learner may turn while training goes on: smoothing, masking rate, temperature.

The weight of smoothing enters the loss, which is differentiated by it. The masking rate and the temperature of a
threshold decide what chance masks; no loss of a mask that was drawn depends on them. What a mean loss over masks has as
its derivative by them is E[loss * d log P(mask)] (the score function; Williams, 1992): a loss of a row whose weight is
P(mask) / P(mask as it was drawn), 1 in value, has it.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Knob = Literal["smoothing", "rate", "temperature"]


class Choice(NamedTuple):
    """How the masked positions of a batch were drawn.

    drawn  (batch, length) bool: those that chance chose, each for itself.
    open   (batch, length) bool: those that it might have chosen.
    above  (batch, length) float32: score - threshold, where a temperature says what that is worth; None: a position
           that is open is chosen with the chance `rate`.
    """

    drawn: Tensor
    open: Tensor
    above: Tensor | None

    def chances(self, rate: Tensor | float, temperature: Tensor | float) -> Tensor:
        """(batch, length) float32: rate * sigmoid(above / temperature) where a position is open, 0 elsewhere."""
        if self.above is None:
            return self.open * torch.as_tensor(rate)
        return rate * (self.above.masked_fill(~self.open, 0.0) / temperature).sigmoid() * self.open

    def log_probability(self, rate: Tensor | float, temperature: Tensor | float) -> Tensor:
        """(batch,) log P(drawn), in nats, which can be differentiated by rate and temperature."""
        chance = self.chances(rate, temperature).clamp(1e-7, 1 - 1e-6)  # open ones alone are read
        each = torch.where(self.drawn, chance.log(), (-chance).log1p())
        return (each * self.open).sum(1)

    def ratio(self, rate: Tensor | float, temperature: Tensor | float) -> Tensor:
        """(batch,) P(drawn) / P(drawn) as it is: 1, with the derivative of log P."""
        found = self.log_probability(rate, temperature)
        return (found - found.detach()).exp()
