"""States of a few positions only: the last layer's feed-forward block, a third of a small model, runs on those alone.

The block looks at one position at a time, so what it would say elsewhere is never needed when few states are read.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mlpt.objectives.base import Inputs

HiddenAt = Callable[[Inputs, Tensor], Tensor]
_Block = Callable[[Tensor], Tensor]  # (batch, length, hidden) -> the same
_Wanted = threading.local  # `positions` (n,) of the thread's pass; not there: all


@contextmanager
def reading_few(encoder: Any) -> Iterator[HiddenAt]:
    """Yields a function of (inputs, positions) that gives the last hidden states at `positions` (n,), which index the
    flattened batch * length: (n, hidden), equal to `encoder.hidden(inputs)` read there, without a gradient.

    Several threads may call it at once. Architectures whose last layer isn't known here compute it whole.
    """
    wanted = threading.local()

    def hidden_at(inputs: Inputs, positions: Tensor) -> Tensor:
        wanted.positions = positions
        try:
            return encoder.hidden(inputs).flatten(0, 1).index_select(0, positions)
        finally:
            del wanted.positions

    block_of = _BLOCKS.get(encoder.config.model_type)
    if block_of is None:
        yield hidden_at
        return
    module, name, only = block_of(encoder.backbone.base_model, wanted)
    module.__dict__[name] = only
    try:
        yield hidden_at
    finally:
        del module.__dict__[name]  # the class's own is found again


def knows_last_layer(encoder: Any) -> bool:
    """Whether `reading_few` spares this architecture anything. Its passes then also don't disturb each other."""
    return encoder.config.model_type in _BLOCKS


def _bert(model: Any, wanted: _Wanted) -> tuple[nn.Module, str, _Block]:
    """Post-norm layers: `feed_forward_chunk` is the whole block, its residual and norm included."""
    layer = model.encoder.layer[-1]
    whole = layer.feed_forward_chunk

    def only(states: Tensor) -> Tensor:
        positions = getattr(wanted, "positions", None)
        if positions is None:
            return whole(states)
        flat = states.flatten(0, 1)
        said = whole(flat.index_select(0, positions)).to(flat.dtype)
        return flat.index_copy(0, positions, said).view_as(states)

    return layer, "feed_forward_chunk", only


def _modernbert(model: Any, wanted: _Wanted) -> tuple[nn.Module, str, _Block]:
    """Pre-norm layers: what `mlp` says is added to the residual stream."""
    mlp = model.layers[-1].mlp
    whole = mlp.forward

    def only(states: Tensor) -> Tensor:
        positions = getattr(wanted, "positions", None)
        if positions is None:
            return whole(states)
        flat = states.flatten(0, 1)
        said = whole(flat.index_select(0, positions))
        return flat.new_zeros(flat.shape, dtype=said.dtype).index_copy(0, positions, said).view_as(states)

    return mlp, "forward", only


_BLOCKS: dict[str, Callable[[Any, _Wanted], tuple[nn.Module, str, _Block]]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "camembert": _bert,
    "electra": _bert,
    "modernbert": _modernbert,
}
