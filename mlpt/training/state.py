"""The state of a model and of its optimiser as named tensors: what checkpoints hold."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mlpt.errors import UserError

_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # the last one is Muon's, which has no other


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor that is tied under several names stands once."""
    named = dict(model.named_parameters())
    kept = set(model.state_dict(keep_vars=True))
    return named | {name: buffer for name, buffer in model.named_buffers() if name in kept}


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
        tensor.copy_(tensors[name])


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
                key: tensors[f"{name}.{key}"].detach().clone().to(parameter.device) for key in kept
            }
