"""AdamW with the usual parameter groups."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from mlpt.errors import UserError
from mlpt.models.sharded import is_part
from mlpt.settings import Settings
from mlpt.sparsity.optim import BertAdam, TransformersAdamW
from mlpt.training.muon import MuonWithAdamW, hidden_matrices

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Settings):
    """AdamW (Loshchilov and Hutter, 2019), decoupled weight decay.

    kind  `adamw`: torch's. `muon`: torch's Muon for the matrices between embeddings and heads,
          AdamW for the rest. `transformers_adamw` and `bert_adam`: the two that TAMT's published code trains masks with
          (`mlpt.sparsity.optim`); bert_adam clips each tensor on its own, so that train.clip should be 0.
    """

    kind: Literal["adamw", "muon", "transformers_adamw", "bert_adam"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[Decay, Decay] = Field((0.9, 0.98), description="decay a step of the two moments")
    eps: float = Field(1e-6, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.01, ge=0, description="for matrices; biases and norms are never decayed")


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups of the trainable parameters: matrices are decayed; biases and norm weights (one dimension) are not.

    Those that ranks share out are groups of their own: one kernel takes either kind alone.
    """
    trainable = [parameter for _, parameter in named if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if is_part(p) == parts and test(p.ndim)], "weight_decay": decay}
        for parts in (False, True)
        for test, decay in ((lambda ndim: ndim >= 2, weight_decay), (lambda ndim: ndim < 2, 0.0))
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Any:
    """The optimiser over the trainable parameters of `model`; AdamW is fused into one kernel for each group."""
    groups = parameter_groups(model.named_parameters(), config.weight_decay)
    if not groups:
        raise UserError("nothing to train: every parameter of the model is frozen")
    if config.kind == "muon":
        return _with_muon(model, groups, config)
    if config.kind != "adamw":
        published = TransformersAdamW if config.kind == "transformers_adamw" else BertAdam
        return published(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _with_muon(model: nn.Module, groups: list[dict], config: OptimizerConfig) -> MuonWithAdamW:
    matrices = hidden_matrices(model)
    if not matrices:
        raise UserError("optimizer.kind=muon is for matrices of linear layers, and none trains: take adamw")
    theirs = {id(one) for one in matrices}
    rest = [{**group, "params": [one for one in group["params"] if id(one) not in theirs]} for group in groups]
    rest = [group for group in rest if group["params"]]
    muon = torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return MuonWithAdamW(muon, torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, eps=config.eps, fused=True))


def check_look_ahead(who: str, config: OptimizerConfig, setting: str) -> None:
    """Raise `ValueError` where `who` would look ahead through steps of an optimiser that cannot be differentiated."""
    if config.kind != "adamw":
        raise ValueError(f"{who} looks ahead through AdamW: set {setting}.kind=adamw, which is {config.kind} here")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate of the coming step; a group's own `scale` multiplies it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
