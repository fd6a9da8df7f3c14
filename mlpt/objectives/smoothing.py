"""Token-specific label smoothing: a target is partly what a reference model says of the uncorrupted text.

Self-evolution learning (Zhong et al., ACL Findings 2023): q = (1 - a) onehot(y) + a r, with r from the model as it is
(the published code) or from the frozen model (the paper's wording). With r uniform it is label smoothing as of
Szegedy et al. (2016, section 7).
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mlpt.objectives.base import Inputs
from mlpt.settings import Settings


class SmoothingConfig(Settings):
    """Of the targets of training texts; held-out texts always have plain targets.

    kind         `none`; `uniform`: r is 1 / vocabulary; `token`: r is the reference's distribution of each position.
    weight       a, the share of r in the target.
    reference    of `token`: `current`, the weights of this very step; `frozen`, those that training began with;
                 `average`, their exponential moving average. All in evaluation mode, without gradient, on the clean
                 text. A learned weight: engines `higher` and `one_step` take a `current` reference as given, as the
                 training step does; `finite_difference` displaces it with the weights and needs one of the others.
    decay        of `average`, a step.
    denominator  what the summed loss is divided by: `predicted` positions, as everywhere here, or `all_tokens` but
                 padding, as in the published code (its loss is the masking rate times the usual value).
    """

    kind: Literal["none", "uniform", "token"] = "none"
    weight: float = Field(default=0.1, ge=0, le=1)
    reference: Literal["current", "frozen", "average"] = "current"
    decay: float = Field(default=0.999, gt=0, lt=1)
    denominator: Literal["predicted", "all_tokens"] = "predicted"

    @property
    def is_plain(self) -> bool:
        """True where the loss is the usual one."""
        return self.kind == "none" and self.denominator == "predicted"

    @model_validator(mode="after")
    def _reference_is_asked(self) -> Self:
        if self.kind != "token" and self.reference != "current":
            raise ValueError(f"reference={self.reference} belongs to kind=token, and kind is {self.kind}")
        return self


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, weight: Tensor | float, reference: Tensor | Literal["uniform"] | None
) -> Tensor:
    """(n,) float32: -sum_v q_v log p_v with q = (1 - weight) onehot(target) + weight r, in nats.

    logits     (n, vocabulary) float32; p is their softmax. The gradient by them is p - q.
    targets    (n,) int64.
    weight     in [0, 1], () or (n,); it may require a gradient.
    reference  (n, vocabulary) float32 logits of r, through which nothing flows; `uniform`; None: r is left out, and so
               is `weight`.
    """
    log_p = logits.log_softmax(1)
    plain = -log_p.gather(1, targets.unsqueeze(1)).squeeze(1)
    if reference is None:
        return plain
    if isinstance(reference, str):
        toward = -log_p.mean(1)
    else:
        toward = -(reference.detach().softmax(1) * log_p).sum(1)
    return (1 - weight) * plain + weight * toward


def clean_inputs(inputs: Inputs) -> Inputs:
    """The text before its corruption: `targets` put back at `positions`."""
    assert inputs.positions is not None
    assert inputs.targets is not None
    flat = inputs.input_ids.reshape(-1).index_copy(0, inputs.positions, inputs.targets)
    return replace(inputs, input_ids=flat.view(inputs.input_ids.shape))


@torch.no_grad()
def reference_logits(model: Any, inputs: Inputs) -> Tensor:
    """(n, vocabulary) float32 of `model` at the predicted positions of the clean text, in evaluation mode.

    One pass of the encoder; the head sees the n positions alone. The model's mode is as before afterwards.
    """
    assert inputs.positions is not None
    with evaluating(model):
        hidden = model.hidden(clean_inputs(inputs)).flatten(0, 1)  # (batch * length, hidden)
        return model.token_logits(hidden.index_select(0, inputs.positions)).float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off; afterwards every module is in the mode it had."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Reference:
    """A copy of an encoder that gives reference distributions. No module owns it: it is neither trained nor saved."""

    def __init__(self, model: Any, decay: float | None):
        """decay: of the exponential moving average that `update` keeps; None: the copy stays as it is."""
        without = {id(model.objectives): {}, id(model.heads): nn.ModuleDict()}
        self.model = copy.deepcopy(model, without).eval().requires_grad_(False)
        self.decay = decay

    def on(self, device: torch.device) -> Any:
        """The copy, on `device`."""
        return self.model.to(device)

    @torch.no_grad()
    def update(self, model: Any) -> None:
        """One step of the average: own = decay * own + (1 - decay) * weights of `model`."""
        if self.decay is None:
            return
        theirs = dict(model.named_parameters())
        own = dict(self.on(next(iter(theirs.values())).device).named_parameters())
        torch._foreach_lerp_(list(own.values()), [theirs[name] for name in own], 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights, by name; none of a frozen copy, which every process makes anew."""
        return {} if self.decay is None else dict(self.model.named_parameters())

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, own in self.state().items():
            own.copy_(tensors[name])
