"""The networks of MetaLMO (Shen, 2021): a student, and a teacher that writes the student's pretraining data.

Both have the same trunk. The student predicts one token a position through a decoder tied to its embeddings. The
teacher reads plain text and has two heads with decoders of their own: one writes the input of a training pair, the
other its target, each token on its own given the text.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.soft import soft_embedding
from mlpt.objectives.networks import NetworkConfig
from mlpt.randomness import address

N = TypeVar("N", bound=nn.Module)


class Pair(NamedTuple):
    """What a teacher says of a training pair: logits (batch, length, vocabulary), or tokens drawn (batch, length)."""

    inputs: Tensor
    targets: Tensor


class Trunk(nn.Module):
    """Embeddings and encoder layers: tokens, or distributions over tokens, to hidden states."""

    def __init__(self, config: NetworkConfig, vocabulary: Vocabulary):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary.size, config.hidden_size, padding_idx=vocabulary.pad)
        self.positions = nn.Embedding(config.positions, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden_size)  # of the embeddings ("post") or of the last layer ("pre")
        self.dropout = nn.Dropout(config.dropout)
        self.pre_norm = config.norm == "pre"

    def forward(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """Last hidden states, (batch, length, hidden).

        tokens  (batch, length) int64, or (batch, length, vocabulary) distributions.
        real    (batch, length) bool, the positions that may be attended to; None: all, nothing is padding.
        """
        return self.hidden_states(tokens, real)[-1]

    def hidden_states(self, tokens: Tensor, real: Tensor | None = None) -> list[Tensor]:
        """Embedding output and the output of every layer, the last of them normalised; arguments as of `forward`."""
        if tokens.is_floating_point():
            embedded = soft_embedding(tokens, self.tokens.weight, self.tokens.padding_idx)
        else:
            embedded = self.tokens(tokens)
        return self.encode(embedded, real)

    def encode(self, embedded: Tensor, real: Tensor | None) -> list[Tensor]:
        """`hidden_states` of token embeddings (batch, length, hidden)."""
        states = embedded + self.positions.weight[: embedded.shape[1]]
        states = self.dropout(states if self.pre_norm else self.norm(states))
        seen = None if real is None else _attended(real)
        found = [states]
        for layer in self.layers:
            found.append(layer(found[-1], seen))
        if self.pre_norm:
            found[-1] = self.norm(found[-1])
        return found


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each a residual branch that is normalised before or after."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.inner = nn.Linear(config.hidden_size, config.intermediate_size)
        self.outer = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.activation = _activation(config.activation)
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.pre_norm = config.norm == "pre"

    def forward(self, states: Tensor, seen: Tensor | None) -> Tensor:
        """(batch, length, hidden) to the same shape; `seen` is the mask of `scaled_dot_product_attention`."""
        if self.pre_norm:
            states = states + self.dropout(self.attention(self.attention_norm(states), seen))
            return states + self.dropout(self._feed_forward(self.norm(states)))
        states = self.attention_norm(states + self.dropout(self.attention(states, seen)))
        return self.norm(states + self.dropout(self._feed_forward(states)))

    def _feed_forward(self, states: Tensor) -> Tensor:
        return self.outer(self.activation_dropout(self.activation(self.inner(states))))


class Attention(nn.Module):
    """Multi-head self-attention. Its joint input projection is no `nn.Linear`: it keeps its Xavier-uniform weights."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout, self.eager = config.heads, config.attention_dropout, config.attention == "eager"
        self.in_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_bias = nn.Parameter(torch.zeros(3 * width))
        self.out = nn.Linear(width, width)

    def forward(self, states: Tensor, seen: Tensor | None) -> Tensor:
        """(batch, length, hidden) to the same shape."""
        batch, length, width = states.shape
        projected = F.linear(states, self.in_weight, self.in_bias)  # (batch, length, 3 * hidden)
        query, key, value = projected.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if self.eager:
            scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5  # (batch, heads, length, length)
            scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
            mixed = F.dropout(scores.softmax(dim=-1), dropout) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class TokenHead(nn.Module):
    """Linear, activation, LayerNorm, decoder: (..., hidden) to (..., vocabulary). `table`: share these embeddings."""

    def __init__(self, config: NetworkConfig, vocabulary: Vocabulary, table: nn.Embedding | None = None):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = _activation(config.activation)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.decoder = nn.Linear(config.hidden_size, vocabulary.size)
        if table is not None:
            self.decoder.weight = table.weight

    def forward(self, states: Tensor) -> Tensor:
        """Logits of each position."""
        return self.decoder(self.norm(self.activation(self.dense(states))))


class Student(nn.Module):
    """The published student: one token a position, its decoder tied to its embeddings."""

    def __init__(self, config: NetworkConfig, vocabulary: Vocabulary):
        super().__init__()
        self.trunk = Trunk(config, vocabulary)
        self.head = TokenHead(config, vocabulary, self.trunk.tokens)

    def forward(self, tokens: Tensor, real: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """Logits of tokens or of distributions over them; `tokens` and `real` as of `Trunk`.

        at  (batch, n) int64, the positions of each row to predict: logits are (batch, n, vocabulary). None: all.
        """
        states = self.trunk(tokens, real)
        if at is not None:
            states = states.gather(1, at.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        return self.head(states)


class Teacher(nn.Module):
    """The published teacher: two heads on one trunk.

    may_write_padding  whether the padding token can be drawn at positions that hold text. Published: yes, and the
                       student then takes such a position for padding and drops its target. False gives it no mass.
    """

    def __init__(self, config: NetworkConfig, vocabulary: Vocabulary, may_write_padding: bool = False):
        super().__init__()
        self.trunk = Trunk(config, vocabulary)
        self.head_inputs = TokenHead(config, vocabulary)
        self.head_targets = TokenHead(config, vocabulary)
        self.pad, self.may_write_padding = vocabulary.pad, may_write_padding

    def forward(self, tokens: Tensor, real: Tensor | None = None) -> Pair:
        """Logits of both sequences, each (batch, length, vocabulary); arguments as of `Trunk`."""
        states = self.trunk(tokens, real)
        return Pair(self._allowed(self.head_inputs(states)), self._allowed(self.head_targets(states)))

    def _allowed(self, logits: Tensor) -> Tensor:
        if self.may_write_padding:
            return logits
        is_pad = torch.arange(logits.shape[-1], device=logits.device) == self.pad
        return logits.masked_fill(is_pad, float("-inf"))


def build_student(config: NetworkConfig, vocabulary: Vocabulary, seed: int) -> Student:
    """A new student in training mode, float32, on the CPU; equal seeds give equal weights."""
    return _seeded(lambda: Student(config, vocabulary), seed, "student")


def build_teacher(config: NetworkConfig, vocabulary: Vocabulary, seed: int, may_write_padding: bool = False) -> Teacher:
    """A new teacher in training mode, float32, on the CPU; equal seeds give equal weights."""
    return _seeded(lambda: Teacher(config, vocabulary, may_write_padding), seed, "teacher")


def initialise(network: nn.Module) -> None:
    """Starting weights: N(0, 0.02) in linear layers and embeddings, zero in biases and in rows of padding."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for module in network.modules():  # last: a tied decoder has drawn the row of padding anew
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0


def _seeded(make: Callable[[], N], seed: int, purpose: str) -> N:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(seed, purpose))
        network = make()
        initialise(network)
    return network.train()


def _activation(name: str) -> nn.Module:
    return nn.GELU() if name == "gelu" else nn.ReLU()


def _attended(real: Tensor) -> Tensor:
    """(batch, 1, 1, length) bool: the keys of each row. A row of padding alone attends to all of it, instead of NaN.

    A mask of four dimensions already says what each position sees.
    """
    if real.dim() == 4:
        return real
    return (real | ~real.any(dim=-1, keepdim=True))[:, None, None, :]
