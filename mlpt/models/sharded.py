"""Layers whose weights, gradients and moments ranks share out among them: FSDP2 (`fully_shard`; Zhao et al. 2023).

Each rank keeps a part of every layer and gathers a whole layer only while it runs. Embeddings and heads stay whole on
every rank, because ranks may draw different objectives in a step, and then not the same of these take part.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mlpt.errors import UserError


def shard_layers(model: Any, device: torch.device) -> None:
    """Share out the layers of an `Encoder` among all ranks, in place and on `device`; make the optimiser after it.

    Every rank must call it, with equal weights. Raises `UserError` for an architecture whose layers aren't known here.
    """
    layers = layers_of(model.backbone)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    inside = {id(one) for layer in layers for one in layer.parameters()}
    whole = {one for one in model.parameters() if id(one) not in inside}
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    # A layer's output may be a view, which only an operation in place could spoil; no architecture here does one.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def is_sharded(model: Any) -> bool:
    """Whether `shard_layers` has shared it out."""
    return isinstance(model, FSDPModule)


def accumulate(model: Any, last: bool) -> None:
    """Before a backward pass of a sharded model: exchange gradients with this one (`last`), or keep adding them up."""
    model.set_requires_gradient_sync(last)


@torch.no_grad()
def average_whole(model: nn.Module) -> None:
    """After a step's last backward pass: the mean over ranks of the gradients of what is not shared out, as DDP has it.

    A parameter that took part on no rank keeps no gradient. Every rank must call it.
    """
    own = [one for one in model.parameters() if one.requires_grad and not isinstance(one, DTensor)]
    if not own:
        return
    used = torch.tensor([float(one.grad is not None) for one in own], device=own[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    taking = [one for one, held in zip(own, used.tolist(), strict=True) if held]
    for one in taking:
        if one.grad is None:
            one.grad = torch.zeros_like(one)
    if not taking:
        return
    flat = torch.cat([one.grad.reshape(-1) for one in taking if one.grad is not None])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for one in taking:
        assert one.grad is not None
        one.grad.copy_(flat[start : start + one.numel()].view_as(one))
        start += one.numel()


def is_part(tensor: Tensor) -> bool:
    """Whether ranks share it out, so that each holds a part."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is shared out, sharing memory with it; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is shared out, on the CPU: every rank must ask. Any other tensor as it is."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, own: Tensor) -> Tensor:
    """A copy of the whole `tensor` as `own` is: on its device, and where that is shared out, so is the copy."""
    if not isinstance(own, DTensor):
        return tensor.detach().clone().to(own.device)
    moved = tensor.detach().to(own.device)
    return distribute_tensor(moved, own.device_mesh, own.placements, src_data_rank=None)


def norm_and_clip(gradients: Iterable[Tensor], clip: float) -> Tensor:
    """Euclidean norm of all gradients together, of which some are shared out; then they are clipped to `clip` (0: not).

    Every rank must call it; a scalar on the device.
    """
    gradients = list(gradients)
    parts = [local(one) for one in gradients if isinstance(one, DTensor)]
    wholes = [one for one in gradients if not isinstance(one, DTensor)]
    squares = [torch.nn.utils.get_total_norm(some).square() for some in (parts, wholes)]
    dist.all_reduce(squares[0])
    norm = (squares[0] + squares[1]).sqrt()
    if clip:
        factor = torch.clamp(clip / (norm + 1e-6), max=1.0)
        for one in parts + wholes:
            one.mul_(factor)
    return norm


def layers_of(model: Any) -> list[nn.Module]:
    """The layers of a Hugging Face model, which are what is shared out.

    Raises `UserError` for an architecture whose layers aren't known here.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"train.parallel=fsdp does not know the layers of '{model.config.model_type}': take train.parallel=ddp"
    )
