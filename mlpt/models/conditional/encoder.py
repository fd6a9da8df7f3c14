"""The task-conditioned encoders of CA-MTL (Pilault et al., ICLR 2021): stock BERT or RoBERTa parts, wired per task.

Two wirings, as the paper's: `base` ends in one bottleneck inside the last layer, `large` has a bottleneck ladder beside
all layers. Stock parameter names are kept, so pretrained weights load by name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from mlpt.data.reach import hub_lookup
from mlpt.errors import UserError
from mlpt.models.conditional.modules import BlockDiagonalBias, ConditionalBottleneck, ConditionalLayerNorm, FiLM
from mlpt.randomness import address
from mlpt.settings import Settings
from mlpt.storage.memory import align_weights
from mlpt.storage.stock import read_stock


class ConditionalConfig(Settings):
    """How an encoder is conditioned on the task.

    wiring      `base` (an even number of layers, conditional layer norms in the upper half, a bottleneck in the last
                layer) or `large` (a bottleneck beside every layer).
    norm        what conditional layer norms condition: `scale` as the published code, `scale_and_shift` as the paper
                (CA-6). Default: the paper's, at the same cost.
    last_layer  `base`'s last layer: `loaded` from the checkpoint, or `random` as the published code leaves it because
                its names differ (CA-4). Default `loaded`: 7 M pretrained weights are not thrown away. Without the
                bottleneck that layer is a stock one, and always loaded.
    max_length  longest input in tokens; conditional attention needs a hidden size that is a multiple of it.

    The paper's ablation: each of the four parts can be off, which leaves the stock network there.

    attention   conditional attention: the block-diagonal bias of the scores, in every layer.
    alignment   conditional alignment: FiLM of the embeddings, before the first layer.
    layer_norm  conditional layer norms of the upper half.
    bottleneck  conditional bottleneck: in `base`'s last layer, or the ladder of `large`.
    """

    wiring: Literal["base", "large"] = "base"
    norm: Literal["scale_and_shift", "scale"] = "scale_and_shift"
    last_layer: Literal["loaded", "random"] = "loaded"
    max_length: int = Field(128, gt=0)
    attention: bool = True
    alignment: bool = True
    layer_norm: bool = True
    bottleneck: bool = True


class ConditionalLayer(nn.Module):
    """A stock BERT or RoBERTa layer with conditional attention and, in the upper half, conditional layer norms.

    Each of the two is there only where `conditional` has it on; with neither it computes what the stock layer does.
    """

    attention: Any
    intermediate: Any
    output: Any

    def __init__(self, stock: Any, config: Any, conditional: ConditionalConfig, conditional_norms: bool):
        super().__init__()
        self.attention, self.intermediate, self.output = stock.attention, stock.intermediate, stock.output
        self.attention_bias = (
            BlockDiagonalBias(config.hidden_size, conditional.max_length) if conditional.attention else None
        )
        self.conditional_norms = conditional_norms and conditional.layer_norm
        if self.conditional_norms:
            for part in (self.attention.output, self.output):
                part.LayerNorm = _conditional_norm(config, conditional, part.LayerNorm)

    def forward(self, hidden: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """`hidden` (batch, length, hidden), `mask` (batch, length) bool -> (batch, length, hidden)."""
        attended = self.attend(hidden, mask, condition)
        return self.feed_forward(attended, condition)

    def attend(self, hidden: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """Conditional self-attention, its residual and its norm."""
        if self.attention_bias is None:
            bias = hidden.new_zeros(len(hidden), 1, hidden.shape[1])  # (batch, 1, length)
        else:
            bias = self.attention_bias(condition, hidden.shape[1])  # (batch, length, length)
        bias = bias.masked_fill(~mask.unsqueeze(1), torch.finfo(bias.dtype).min).unsqueeze(1)
        context, _ = self.attention.self(hidden, bias)
        part = self.attention.output
        return self._norm(part.LayerNorm, part.dropout(part.dense(context)) + hidden, condition)

    def feed_forward(self, attended: Tensor, condition: Tensor) -> Tensor:
        """The feed-forward part, its residual and its norm."""
        part = self.output
        return self._norm(part.LayerNorm, part.dropout(part.dense(self.intermediate(attended))) + attended, condition)

    def _norm(self, norm: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
        return norm(x, condition) if self.conditional_norms else norm(x)


class BottleneckLayer(ConditionalLayer):
    """The last layer of the `base` wiring: a bottleneck whose residual is the attention's output, as published."""

    def __init__(self, stock: Any, config: Any, conditional: ConditionalConfig):
        super().__init__(stock, config, conditional, conditional_norms=True)
        self.bottleneck = ConditionalBottleneck(config.hidden_size)
        self.bottleneck_norm = (
            _conditional_norm(config, conditional)
            if conditional.layer_norm
            else nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        )

    def forward(self, hidden: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        attended = self.attend(hidden, mask, condition)
        narrowed = self.bottleneck(condition, self.feed_forward(attended, condition))
        return self._norm(self.bottleneck_norm, narrowed + attended, condition)


class ConditionalStack(nn.Module):
    """All layers in the `base` or the `large` wiring; `layer` is named as in the stock encoders."""

    def __init__(self, stock: nn.ModuleList, config: Any, conditional: ConditionalConfig):
        super().__init__()
        n = len(stock)
        last_is_bottleneck = conditional.bottleneck and conditional.wiring == "base"
        if n < 2 or (last_is_bottleneck and n % 2):
            raise UserError(f"CA-MTL's base wiring needs an even number of layers, not {n}; take wiring=large")
        lower = n - n // 2  # an odd layer goes to the lower half
        self.layer = nn.ModuleList(
            BottleneckLayer(layer, config, conditional)
            if last_is_bottleneck and i == n - 1
            else ConditionalLayer(layer, config, conditional, conditional_norms=i >= lower)
            for i, layer in enumerate(stock)
        )
        bottlenecks = n if conditional.bottleneck and conditional.wiring == "large" else 0
        self.ladder = nn.ModuleList(ConditionalBottleneck(config.hidden_size) for _ in range(bottlenecks))

    def forward(self, hidden: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """(batch, length, hidden) -> the last rung of the ladder, or the last layer's output where there is none."""
        if not self.ladder:
            for layer in self.layer:
                hidden = layer(hidden, mask, condition)
            return hidden
        rung = torch.zeros_like(hidden)
        for layer, bottleneck in zip(self.layer, self.ladder, strict=True):
            hidden = layer(hidden, mask, condition)
            rung = bottleneck(condition, hidden + rung)
        return rung


class ConditionalEncoder(nn.Module):
    """A BERT or RoBERTa encoder conditioned on the task of each row; pooled like BERT (dense and tanh on position 0).

    `stock` is a `BertModel` or `RobertaModel` with a pooler; its modules are taken over, not copied.
    """

    def __init__(self, stock: Any, conditional: ConditionalConfig, n_tasks: int, seed: int = 0):
        super().__init__()
        config = stock.config
        _check(config, conditional)
        self.config, self.conditional = config, conditional
        known = set(stock.modules())
        self.embeddings, self.pooler = stock.embeddings, stock.pooler
        size, in_layers = config.hidden_size, conditional.attention or conditional.layer_norm or conditional.bottleneck
        self.task_embedding = nn.Embedding(n_tasks, size) if in_layers or conditional.alignment else None
        self.task_transformation = nn.Linear(size, size) if in_layers else None
        self.alignment = FiLM(size, size) if conditional.alignment else None
        self.encoder = ConditionalStack(stock.encoder.layer, config, conditional)
        generator = torch.Generator().manual_seed(address(seed, "conditional encoder"))
        fresh = [module for module in self.modules() if module not in known]
        _initialise(fresh, config.initializer_range, generator)
        last: Any = self.encoder.layer[-1]
        if isinstance(last, BottleneckLayer) and conditional.last_layer == "random":
            _initialise([m for m in last.modules() if m in known], config.initializer_range, generator)
            for norm in (last.attention.output.LayerNorm, last.output.LayerNorm):
                norm.reset_parameters()

    @property
    def hidden_size(self) -> int:
        """Width of the pooled output."""
        return self.config.hidden_size

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Last hidden states (batch, length, hidden) of `input_ids` (batch, length), rows of tasks `task_ids` (batch,).

        Raises UserError when the rows are longer than `max_length`.
        """
        if input_ids.shape[1] > self.conditional.max_length:
            raise UserError(
                f"inputs of {input_ids.shape[1]} tokens exceed the conditional encoder's max_length "
                f"{self.conditional.max_length}; truncate them or raise max_length"
            )
        hidden = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        task = hidden.new_zeros(0) if self.task_embedding is None else self.task_embedding(task_ids)  # (batch, hidden)
        if self.alignment is not None:
            hidden = self.alignment(task, hidden)
        condition = task if self.task_transformation is None else self.task_transformation(task)
        return self.encoder(hidden, attention_mask.bool(), condition)

    def states(
        self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states (batch, length, hidden) and the pooled output (batch, hidden)."""
        hidden = self.hidden(input_ids, attention_mask, task_ids, token_type_ids)
        return hidden, self.pooler(hidden)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Pooled output, (batch, hidden)."""
        return self.pooler(self.hidden(input_ids, attention_mask, task_ids, token_type_ids))


def load_stock_config(folder: str | Path) -> Any:
    """The Hugging Face configuration of a saved encoder. Raises UserError when it cannot be read."""
    try:
        with hub_lookup(folder):
            return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _unloadable(folder, error) from error


def load_stock(folder: str | Path, seed: int = 0) -> Any:
    """The stock encoder with its pooler; weights that the checkpoint lacks are drawn from `seed`.

    Raises UserError when the folder cannot be read or its architecture is neither BERT nor RoBERTa.
    """
    config = load_stock_config(folder)
    try:
        with seeded(seed, "missing pretrained weights"), hub_lookup(folder):
            stock, _ = read_stock(AutoModel, folder, config=config, attn_implementation="sdpa")
    except (OSError, ValueError, SafetensorError) as error:
        raise _unloadable(folder, error) from error
    if getattr(stock, "pooler", None) is None:
        raise UserError(
            f"{folder} is a {config.model_type}; fine-tuning on many tasks at once needs a model built like BERT or "
            "RoBERTa, for example one that `mlpt pretrain mometas` made"
        )
    align_weights(stock)
    return stock


def _unloadable(folder: str | Path, error: Exception) -> UserError:
    return UserError(f"cannot load an encoder from {folder}: {str(error).splitlines()[0]}")


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Inside, what libraries draw from torch's global CPU stream comes from the stream (seed, purpose) instead."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(address(seed, purpose))
        yield


def _check(config: Any, conditional: ConditionalConfig) -> None:
    if config.model_type not in ("bert", "roberta"):
        raise UserError(f"a conditional encoder is built from BERT or RoBERTa, not from {config.model_type}")
    if conditional.attention and config.hidden_size % conditional.max_length:
        raise UserError(
            f"max_length {conditional.max_length} does not divide the hidden size {config.hidden_size}, as CA-MTL's "
            "block-diagonal attention needs; choose one that does, or attention=false"
        )


def _conditional_norm(config: Any, conditional: ConditionalConfig, norm: nn.LayerNorm | None = None) -> nn.Module:
    """A conditional layer norm; over `norm`, it takes that norm's parameters."""
    made = ConditionalLayerNorm(
        config.hidden_size, config.hidden_size, config.layer_norm_eps, shift=conditional.norm == "scale_and_shift"
    )
    if norm is not None:
        made.weight, made.bias = norm.weight, norm.bias
    return made


def _initialise(modules: list[nn.Module], std: float, generator: torch.Generator) -> None:
    """Linear and embedding weights from N(0, std), biases zero; layer norms and other parameters stay as they are."""
    for module in modules:
        if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
            nn.init.normal_(module.weight, std=std, generator=generator)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
