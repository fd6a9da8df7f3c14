"""A tiny model of the encoder's kind, with a tied decoder, an idle embedding row and one head an objective."""

import numpy as np
import torch
from torch import nn

from mlpt.arms import arms_of
from mlpt.data.batch import Batch, Source
from mlpt.data.sources import ALL
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.base import Inputs, Objective

LENGTH = 12
VOCABULARY = Vocabulary(size=60, pad=0, mask=1, cls=2, sep=3, unk=4)


class Words(Objective):
    """Predict masked tokens through the tied decoder."""

    name = "words"

    def corrupt(self, batch, generator):
        tokens = batch.tokens
        chosen = torch.rand(tokens.shape, generator=generator) < 0.3
        chosen[:, 1] = True
        return Inputs.from_labels(tokens.masked_fill(chosen, 1), torch.where(chosen, tokens, -100))

    def loss(self, model, inputs):
        hidden = model.hidden(inputs).flatten(0, 1)[inputs.positions]
        return nn.functional.cross_entropy(model.token_logits(hidden), inputs.targets)


class Noise(Objective):
    """Tell replaced tokens (class 1) from the others, through a head of its own."""

    name = "noise"

    def corrupt(self, batch, generator):
        tokens = batch.tokens
        replaced = torch.rand(tokens.shape, generator=generator) < 0.2
        random = torch.randint(5, 55, tokens.shape, generator=generator)
        return Inputs.from_labels(torch.where(replaced, random, tokens), replaced.long())

    def head(self, width):
        return nn.Linear(width, 2)

    def loss(self, model, inputs):
        hidden = model.hidden(inputs).flatten(0, 1)[inputs.positions]
        return nn.functional.cross_entropy(model.heads["noise"](hidden), inputs.targets)


class Order(Noise):
    """Tell swapped neighbours, through another head."""

    name = "order"

    def corrupt(self, batch, generator):
        tokens = batch.tokens
        swapped = torch.rand(len(tokens), generator=generator) < 0.5
        other = tokens.roll(1, dims=1)
        return Inputs.from_labels(
            torch.where(swapped[:, None], other, tokens), swapped.long()[:, None].expand_as(tokens)
        )

    def loss(self, model, inputs):
        hidden = model.hidden(inputs).flatten(0, 1)[inputs.positions]
        return nn.functional.cross_entropy(model.heads["order"](hidden), inputs.targets)


class TinyEncoder(nn.Module):
    """One attention layer; the smallest thing with the encoder's signatures."""

    def __init__(self, objectives, width=8, dropout=0.1):
        super().__init__()
        self.objectives = objectives
        self.embeddings = nn.Embedding(VOCABULARY.size, width)
        self.positions = nn.Parameter(torch.randn(LENGTH, width) * 0.1)
        self.attention = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(width, VOCABULARY.size)
        self.decoder.weight = self.embeddings.weight
        heads = {name: one.head(width) for name, one in objectives.items()}
        self.heads = nn.ModuleDict({name: head for name, head in heads.items() if head is not None})

    def forward(self, objective, inputs):
        return self.objectives[objective].loss(self, inputs)

    def hidden(self, inputs):
        x = self.embeddings(inputs.input_ids) + self.positions
        q, k, v = (part.unsqueeze(1) for part in self.attention(x).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.norm(self.dropout(x + mixed))

    def token_logits(self, hidden):
        return self.decoder(hidden)


class TinyBlocks:
    """Rows of ids between 5 and 54: rows 55 to 59 of the embedding are never used as inputs."""

    def __init__(self, seed, n=40):
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randint(1, 4, (n, LENGTH), generator=generator).cumsum(1)
        self._ids = (steps + torch.randint(0, 50, (n, 1), generator=generator)) % 50 + 5

    def __len__(self):
        return len(self._ids)

    def batch(self, rows: np.ndarray):
        return Batch(self._ids[torch.from_numpy(rows)], rows)


NAMES = ["words", "noise", "order"]
ARMS = arms_of(NAMES, [], None, texts=False)  # every objective on all text


def make_sources():
    return {ALL: Source(TinyBlocks(1), TinyBlocks(2), TinyBlocks(4))}


def make_encoder(seed=0, **settings):
    torch.manual_seed(seed)
    return TinyEncoder({one.name: one(one.Config(), VOCABULARY) for one in (Words, Noise, Order)}, **settings)


def make_adamw(model, lr=1e-3, **settings):
    """Two groups, as in training: matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, **settings)


def train(model, optimizer, blocks, steps, seed=5):
    """Some real steps, one objective each, so that heads lag behind as they do in training."""
    for step in range(steps):
        name = list(model.objectives)[step % len(model.objectives)]
        generator = torch.Generator().manual_seed(seed + step)
        rows = torch.randint(0, len(blocks), (8,), generator=generator).numpy()
        inputs = model.objectives[name].corrupt(blocks.batch(rows), generator)
        optimizer.zero_grad()
        model(name, inputs).backward()
        optimizer.step()
