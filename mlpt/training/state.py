"""The state of a model and of its optimiser as named tensors: what checkpoints hold."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mlpt.errors import UserError
from mlpt.models.sharded import is_part, like, local, whole

_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # the last one is Muon's, which has no other


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor that is tied under several names stands once."""
    named = dict(model.named_parameters())
    kept = set(model.state_dict(keep_vars=True))
    return named | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def whole_tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`named` with the whole of what ranks share out: then every rank must call it."""
    return {name: whole(tensor) for name, tensor in named.items()}


def trained_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds of `model` and of `optimizer`, whole: every rank must call it."""
    of_optimizer = optimizer_tensors(model, optimizer)
    return {"model": whole_tensors(model_tensors(model)), "optimizer": whole_tensors(of_optimizer)}


@torch.no_grad()
def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `model_tensors`, in place. Raises `UserError` when the tensors are of another model."""
    own = model_tensors(model)
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        odd = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
        raise UserError(
            f"the checkpoint is of another model (they differ in {odd[0]}); use the run's own configuration"
        )
    for name, tensor in own.items():
        tensor.copy_(like(tensors[name], tensor) if is_part(tensor) else tensors[name])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by `<parameter name>.<step|exp_avg|...>`; parameters never updated have none."""
    return {
        f"{name}.{key}": state[key]
        for name, parameter in model.named_parameters()
        if (state := optimizer.state.get(parameter))
        for key in _STATE_KEYS
        if key in state
    }


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`: replaces the whole state, moments on the parameter's device."""
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        kept = [key for key in _STATE_KEYS if f"{name}.{key}" in tensors]
        if kept:
            # AdamW keeps `step` on the device when fused and on the CPU otherwise; the fused kernel wants it beside
            # the parameter.
            optimizer.state[parameter] = {
                key: like(tensors[f"{name}.{key}"], local(parameter) if key == "step" else parameter) for key in kept
            }
