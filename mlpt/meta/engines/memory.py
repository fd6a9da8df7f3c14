"""What a look-ahead needs of memory, by engine, and what the machine has."""

import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlpt.meta.engines.base import Lookahead, forward_at, leaves

# Tensors of the size of all weights. An unrolled AdamW step keeps gradient, new weight, both moments and what its
# derivative needs; the adjoint keeps a gradient a step, two states (weight, both moments) and the adjoints of each.
_UNROLLED, _ADJOINT = 8, 12
# Passes whose activations are alive at once: a backward pass that is differentiated keeps its own beside the forward's;
# forward-mode differentiation keeps a tangent beside each, and what the backward pass holds.
_OF_UNROLLED, _OF_TANGENTS = 2, 3


def needed_bytes(problem: Lookahead) -> dict[str, int]:
    """Bytes that each engine for any number of steps holds at its peak, beyond the model and its optimiser, by name.

    Activations are measured in one forward pass of the first inner step, with the attention that the engine uses.
    """
    weights = sum(one.numel() * one.element_size() for one in problem.model.parameters() if one.requires_grad)
    steps = len(problem.steps)
    plain = activation_bytes(problem)
    with sdpa_kernel(SDPBackend.MATH):
        whole = activation_bytes(problem)
    return {
        "higher": (steps - problem.first_tracked) * (_UNROLLED * weights + _OF_UNROLLED * whole),
        "forward_over_reverse": (steps + _ADJOINT) * weights + _OF_TANGENTS * whole,
        "finite_difference": (steps + _ADJOINT) * weights + plain,
    }


def activation_bytes(problem: Lookahead) -> int:
    """What autograd keeps of a forward pass of the first inner step for its backward pass, weights left out."""
    weights = leaves(problem.model)
    seen = {one.untyped_storage().data_ptr() for one in weights.values()}
    kept = 0

    def count(tensor: Tensor) -> Any:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept += storage.nbytes()
        return tensor  # kept alive: another one's address would be taken for it

    with saved_tensors_hooks(count, lambda tensor: tensor):
        problem.steps[0].loss(forward_at(problem, weights), problem.outer)
    return kept


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the device; None where nothing says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def attention_without_second_derivative(model: torch.nn.Module) -> str | None:
    """The attention implementation of a transformers model that cannot fall back on the MATH backend; None: it can."""
    for module in model.modules():
        name = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if name not in (None, "eager", "sdpa"):
            return str(name)
    return None
