"""A teacher that only chooses which positions to corrupt: scores, a draw under a budget, and the draw's likelihood.

A score for each token type, as AMLM has it (arXiv 2510.20475), and on request a small network that reads the text.
Positions are drawn one after another without replacement, each with probability in proportion to exp(score) among
those left (Plackett-Luce), by adding Gumbel noise and taking the largest (Kool et al., 2019).
"""

import torch
from torch import Tensor, nn

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.teacher import Trunk, initialise
from mlpt.objectives.networks import NetworkConfig
from mlpt.randomness import address


class Masker(nn.Module):
    """Scores of positions. Begins with equal scores: random masking.

    network  None: the table of token types alone.
    """

    def __init__(self, network: NetworkConfig | None, vocabulary: Vocabulary):
        super().__init__()
        self.table = nn.Embedding(vocabulary.size, 1)
        self.trunk = None if network is None else Trunk(network, vocabulary)
        self.score = None if network is None else nn.Linear(network.hidden_size, 1)

    def forward(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """(batch, length) scores of the tokens (batch, length); `real` as of `Trunk`."""
        scores = self.table(tokens).squeeze(-1)
        if self.trunk is None or self.score is None:
            return scores
        return scores + self.score(self.trunk(tokens, real)).squeeze(-1)


def build_masker(network: NetworkConfig | None, vocabulary: Vocabulary, seed: int) -> Masker:
    """A new masker with equal scores, float32, on the CPU; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(seed, "masker"))
        masker = Masker(network, vocabulary)
        initialise(masker)
    nn.init.zeros_(masker.table.weight)
    if masker.score is not None:
        nn.init.zeros_(masker.score.weight)
    return masker


def draw_positions(scores: Tensor, among: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """(batch, length) int64: the turn (from 0) in which each position was drawn; `counts` (batch,) are drawn of each
    row's positions `among` (batch, length) bool, all of them where there are fewer; -1 at the others."""
    uniform = torch.rand(scores.shape, generator=generator).clamp(min=1e-20).to(scores.device)
    keys = (scores.detach().float() - (-uniform.log()).log()).masked_fill(~among, -torch.inf)
    turns = keys.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return torch.where(among & (turns < counts.to(scores.device).unsqueeze(1)), turns, -1)


def draw_loss(scores: Tensor, among: Tensor, turns: Tensor) -> Tensor:
    """Minus the log-probability of the draws `turns` (batch, length), per position drawn: a scalar in nats."""
    order = torch.where(turns >= 0, turns, scores.shape[1]).argsort(dim=1, stable=True)  # drawn first, in their turn
    ordered = scores.masked_fill(~among, -1e9).gather(1, order)
    drawn = turns.gather(1, order) >= 0
    left = ordered.flip(1).logcumsumexp(dim=1).flip(1)  # log of the mass of a position and of all after it
    losses = torch.where(drawn, left - ordered, 0.0)
    return losses.sum() / drawn.sum().clamp(min=1)
