"""Modules whose computation depends on the task of each row: the parts of CA-MTL (Pilault et al., ICLR 2021).

`condition` is (batch, condition size): what is known of each row's task. All are shared by every task.
"""

import torch
from torch import Tensor, nn


class FiLM(nn.Module):
    """Feature-wise linear modulation: `(1 + gamma) * x + beta`, with gamma and beta linear in the condition.

    Not the identity at the start: only the bias begins at zero, as published.
    """

    def __init__(self, condition_size: int, size: int):
        super().__init__()
        self.modulation = nn.Linear(condition_size, 2 * size)

    def forward(self, condition: Tensor, x: Tensor) -> Tensor:
        """`condition` (batch, condition size), `x` (batch or nothing, length, size) -> (batch, length, size)."""
        gamma, beta = self.modulation(condition).unsqueeze(1).chunk(2, dim=-1)  # (batch, 1, size) each
        return (1 + gamma) * x + beta


class BlockDiagonalBias(nn.Module):
    """What conditional attention adds to the attention scores: a learned block-diagonal matrix, modulated by the task.

    `hidden_size // max_length` blocks of `ceil(max_length / blocks)` tokens; zero outside the blocks. The same bias
    serves every head, so that scaled-dot-product attention takes it as its float mask.

    Raises ValueError when `hidden_size` is no multiple of `max_length`: the paper defines blocks only then.
    """

    def __init__(self, hidden_size: int, max_length: int):
        super().__init__()
        if max_length < 1 or hidden_size % max_length:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of max_length {max_length}")
        self.width = -(-max_length // (hidden_size // max_length))
        self.film = FiLM(hidden_size, self.width)
        self.matrix = nn.Parameter(torch.zeros(max_length, self.width))

    def forward(self, condition: Tensor, length: int | None = None) -> Tensor:
        """(batch, hidden size) -> (batch, length, length); `length` <= max_length (default), whose corner is taken."""
        length = self.matrix.shape[0] if length is None else length
        rows = self.film(condition, self.matrix[:length])  # (batch, length, width)
        # Column j reads column j mod width. Repeating has a faster backward than indexing; a compiled graph serves all
        # lengths only where the number of repeats is that of the longest.
        repeated = self.matrix.shape[0] if torch.compiler.is_compiling() else length
        spread = rows.repeat(1, 1, -(-repeated // self.width))[..., :length]  # (batch, length, length)
        block = torch.arange(length, device=rows.device) // self.width
        return spread * (block.unsqueeze(0) == block.unsqueeze(1))


class ConditionalLayerNorm(nn.LayerNorm):
    """Layer normalisation modulated by the task; `weight` and `bias` keep their names, so pretrained ones load.

    `shift` False: only the scale is conditioned, `weight' = (1 + gamma) * weight + beta`, as the published code does.
    `shift` True: scale and shift are, as the paper describes: FiLM of the normalised output, of equal parameter count.
    """

    def __init__(self, size: int, condition_size: int, eps: float = 1e-12, shift: bool = True):
        super().__init__(size, eps=eps)
        self.film = FiLM(condition_size, size)
        self.shift = shift

    def forward(self, input: Tensor, condition: Tensor | None = None, task_ids: Tensor | None = None) -> Tensor:
        """`input` (batch, length, size), `condition` (batch, condition size) -> the shape of `input`.

        With `task_ids` (batch,) rows of one task share the condition of the first of them, as the published code
        computes it; without, each row has its own. In an encoder the two agree: there the task makes the condition.
        """
        if condition is None:
            raise TypeError("ConditionalLayerNorm needs a condition, (batch, condition size)")
        if task_ids is not None:
            condition = condition[(task_ids.unsqueeze(1) == task_ids.unsqueeze(0)).int().argmax(dim=1)]
        if self.shift:
            return self.film(condition, super().forward(input))
        scale = self.film(condition, self.weight)  # (batch, 1, size)
        return nn.functional.layer_norm(input, self.normalized_shape, eps=self.eps) * scale + self.bias


class ConditionalBottleneck(nn.Module):
    """FiLM, then down to a third of the width and back up; linear throughout, without residual, as published."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.transformation = nn.Linear(hidden_size, hidden_size)
        self.film = FiLM(hidden_size, hidden_size)
        self.down = nn.Linear(hidden_size, hidden_size // 3)
        self.up = nn.Linear(hidden_size // 3, hidden_size)

    def forward(self, condition: Tensor, x: Tensor) -> Tensor:
        """`condition` (batch, hidden), `x` (batch, length, hidden) -> (batch, length, hidden)."""
        return self.up(self.down(self.film(self.transformation(condition), x)))
