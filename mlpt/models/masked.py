"""Masked weights: linear layers and embeddings whose weights are switched on and off by trainable scores.

TAMT (Liu et al., NAACL 2022): a weight W acts as W * M with M = [S > theta]; the gradient passes the step function
as if it were the identity, dL/dS = dL/d(W M) * W. Bias, LayerNorm, position and type embeddings are never masked.
What a score stands for is told by its tensor's shape: see `over_weight`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mlpt.errors import UserError
from mlpt.models.padded_decoder import PaddedDecoder

THETA = 0.01  # TAMT's threshold before the first reset; kept scores start at 2 * THETA, pruned ones at 0

# What TAMT masks in stock BERT and RoBERTa: 6 weights a layer, the word embeddings, the pooler (74 in BERT-base); and
# the same parts by the names that other families give them.
_BERT = r"attention\.self\.(query|key|value)(_proj)?|attention\.output\.dense|intermediate\.dense|output\.dense"
_ALBERT = r"attention\.(query|key|value|dense)|ffn(_output)?"
_DISTILBERT = r"attention\.(q|k|v|out)_lin|ffn\.lin[12]"
_MODERNBERT = r"attn\.(Wqkv|Wo)|mlp\.(Wi|Wo)"
ENCODER = rf".*[._]layers?\.\d+\.({_BERT}|{_ALBERT}|{_DISTILBERT}|{_MODERNBERT})"
PRESETS = {
    "tamt": rf"{ENCODER}|.*embeddings\.(word|tok)_embeddings|.*pooler\.dense",
    "encoder": ENCODER,
}


class _Binarise(torch.autograd.Function):
    """[S > theta] as 0 and 1; the gradient passes straight through, at pruned entries too and without clipping."""

    @staticmethod
    def forward(ctx: FunctionCtx, scores: Tensor, threshold: Tensor) -> Tensor:
        return (scores > threshold).to(scores.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def binarise(scores: Tensor, threshold: Tensor) -> Tensor:
    """M = [`scores` > `threshold`] in the shape and dtype of `scores` (ties are 0); straight-through gradient."""
    return _Binarise.apply(scores, threshold)


class _MaskedLinearFunction(torch.autograd.Function):
    """F.linear(x, W * [S > theta], b) that keeps no masked copy of W between forward and backward: it is made again.

    The backward pass is made of differentiable operations, so that `higher` may differentiate it once more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, scores, threshold)
        return F.linear(x, weight * (scores > threshold), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients  # (..., out); under autocast in its low precision, which the products below follow
        x, weight, scores, threshold = ctx.saved_tensors
        of_x, of_weight, of_scores, _, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])  # (n, out)
        to_x = to_weight = to_scores = None
        if of_x or of_weight:
            mask = binarise(scores, threshold)
        if of_x:
            to_x = gradient @ (weight * mask).to(gradient.dtype)
        if of_weight or of_scores:
            to_effective = rows.t() @ x.reshape(-1, x.shape[-1]).to(gradient.dtype)  # (out, in)
            to_weight = to_effective * mask if of_weight else None
            to_scores = to_effective * weight if of_scores else None
        return to_x, to_weight, to_scores, None, rows.sum(0) if of_bias else None


def over_features(values: Tensor, features: int) -> Tensor:
    """(features,) from (groups,): each group is as many input features of a linear layer, in their order."""
    return values.repeat_interleave(features // values.numel())


def over_weight(values: Tensor, weight: Tensor) -> Tensor:
    """Scores, or a mask, for each entry of `weight`, in its shape.

    values  in that shape themselves; or (groups,), one for each group of the columns of an (out, in) weight, such as
            those that read an attention head or an FFN neuron (structured TAMT). The rows are then views of one.
    """
    return values if values.shape == weight.shape else over_features(values, weight.shape[1]).expand(weight.shape)


class MaskedLinear(nn.Linear):
    """nn.Linear with `scores`, (out, in) or (groups,), and a scalar buffer `threshold`; the weight stays dense."""

    scores: nn.Parameter
    threshold: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if self.scores.dim() == 1:  # to mask the features costs less than to mask the columns that read them
            mask = over_features(binarise(self.scores, self.threshold), self.in_features)
            return F.linear(input * mask.to(input.dtype), self.weight, self.bias)
        return _MaskedLinearFunction.apply(input, self.weight, self.scores, self.threshold, self.bias)

    def unmask(self) -> None:
        """Become the plain nn.Linear again, with the dense weight."""
        _drop_scores(self, nn.Linear)


class MaskedEmbedding(nn.Embedding):
    """nn.Embedding with `scores` (vocabulary, hidden); only the rows that are looked up are masked."""

    scores: nn.Parameter
    threshold: Tensor

    def forward(self, input: Tensor) -> Tensor:
        rows = F.embedding(input, self.weight, self.padding_idx)
        return rows * binarise(F.embedding(input, self.scores, self.padding_idx), self.threshold)

    def unmask(self) -> None:
        """Become the plain nn.Embedding again, with the dense weight."""
        _drop_scores(self, nn.Embedding)


class MaskedDecoder(MaskedLinear):
    """The language-modelling decoder tied to masked embeddings: its scores and its threshold are theirs."""

    embeddings: tuple[MaskedEmbedding]  # in a tuple, so that they are no part of the decoder

    @property
    def threshold(self) -> Tensor:  # type: ignore[override]
        return self.embeddings[0].threshold

    def unmask(self) -> None:
        """Become the plain nn.Linear again, with the dense weight."""
        super().unmask()
        del self.embeddings


Masked = MaskedLinear | MaskedEmbedding


def _drop_scores(module: nn.Module, plain: type[nn.Module]) -> None:
    del module._parameters["scores"]
    module._buffers.pop("threshold", None)  # a decoder has none of its own
    module.__class__ = plain


def _add_scores(module: nn.Module, masked: type[nn.Module], scores: Tensor, threshold: float) -> None:
    """Turn a plain module into its masked kind where it stands: names, hooks and tied weights stay as they are."""
    module.__class__ = masked
    module.register_parameter("scores", nn.Parameter(scores))
    module.register_buffer("threshold", torch.tensor(threshold, dtype=scores.dtype, device=scores.device))


def backbone_of(model: nn.Module) -> Any:
    """The stock transformers module inside an `Encoder` (or the model itself): mask names are relative to it."""
    return getattr(model, "backbone", model)


def maskable_weights(model: nn.Module, modules: str = "tamt") -> dict[str, Tensor]:
    """The weights that `modules` names, by parameter name (`bert.encoder.layer.0....weight`), in module order.

    modules  a name of PRESETS, or a regular expression that the whole module name must match.
    Raises `UserError` when nothing matches.
    """
    try:
        pattern = re.compile(PRESETS.get(modules, modules))
    except re.error as error:
        raise UserError(
            f"masks.modules is neither one of {', '.join(PRESETS)} nor a regular expression: {error}"
        ) from error
    found: dict[str, Tensor] = {}
    for name, module in backbone_of(model).named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and pattern.fullmatch(name):
            found.setdefault(f"{name}.weight", module.weight)
    in_layers = re.compile(ENCODER if modules in PRESETS else ".*")
    if not any(in_layers.fullmatch(name.removesuffix(".weight")) for name in found):
        raise UserError(
            f"no linear layer of this model matches masks.modules '{modules}'; give a regular expression over its names"
        )
    return found


def add_pooler(model: nn.Module, pretrained: Mapping[str, Tensor] | None = None) -> None:
    """Give a BERT or RoBERTa without a pooler one, as TAMT's 74 matrices ask (modern BertForMaskedLM has none).

    pretrained  `dense.weight` and `dense.bias` of a pretrained pooler. Without it the weight is drawn like the model's
    other linear layers, from a generator of its own: the pooler has no gradient in pretraining.
    """
    body = getattr(backbone_of(model), "base_model", backbone_of(model))
    if getattr(body, "pooler", None) is not None or not hasattr(body, "pooler"):
        return
    pooler = _pooler_class(body)(body.config)
    reference = next(body.parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        pooler.dense.weight.normal_(0.0, getattr(body.config, "initializer_range", 0.02), generator=generator)
        pooler.dense.bias.zero_()
        if pretrained is not None:
            pooler.load_state_dict(pretrained)
    body.pooler = pooler.to(device=reference.device, dtype=reference.dtype)


def _pooler_class(body: nn.Module) -> Any:
    from transformers.models.bert.modeling_bert import BertPooler
    from transformers.models.roberta.modeling_roberta import RobertaPooler

    return RobertaPooler if type(body).__name__.startswith("Roberta") else BertPooler


def attach_scores(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    threshold: float = THETA,
    decoder: Literal["dense", "masked"] = "dense",
) -> None:
    """Mask the weights named in `scores` (float, see `over_weight`), in place; parameters keep their state.

    decoder  "dense" (as published): the language-modelling decoder, tied to the word embeddings, keeps the dense
             matrix; "masked": it shares scores and threshold with the embeddings.
    Raises `UserError` for a name or shape that the model does not have.
    """
    backbone = backbone_of(model)
    modules = dict(backbone.named_modules())
    for name, values in scores.items():
        module = modules.get(name.removesuffix(".weight"))
        if not isinstance(module, nn.Linear | nn.Embedding):
            raise UserError(f"masks do not fit this model: it has no weight '{name}'")
        in_groups = values.dim() == 1 and isinstance(module, nn.Linear) and module.in_features % values.numel() == 0
        if module.weight.shape != values.shape and not in_groups:
            theirs, ours = tuple(values.shape), tuple(module.weight.shape)
            raise UserError(f"masks do not fit this model: '{name}' is {theirs} in the masks and {ours} in the model")
        kind = MaskedEmbedding if isinstance(module, nn.Embedding) else MaskedLinear
        on_device = values.detach().to(module.weight).clone()
        if isinstance(module, Masked):
            module.unmask()
        _add_scores(module, kind, on_device, threshold)
    if decoder == "masked":
        _share_with_decoder(backbone)


def _share_with_decoder(backbone: nn.Module) -> None:
    owners = {id(m.weight): m for m in backbone.modules() if isinstance(m, MaskedEmbedding)}
    for module in backbone.modules():
        if type(module) in (nn.Linear, PaddedDecoder) and id(module.weight) in owners:
            owner = owners[id(module.weight)]
            module.__class__ = MaskedDecoder
            module.scores, module.embeddings = owner.scores, (owner,)  # type: ignore[assignment]


def remove_scores(model: nn.Module) -> None:
    """Drop scores and thresholds, in place: the untouched dense model remains."""
    for module in list(model.modules()):
        if isinstance(module, Masked):
            module.unmask()


def masked_modules(model: nn.Module) -> dict[str, Masked]:
    """Modules with a mask of their own by weight name, in module order; a decoder that shares its mask is left out."""
    named = backbone_of(model).named_modules()
    return {
        f"{name}.weight": module
        for name, module in named
        if isinstance(module, Masked) and not isinstance(module, MaskedDecoder)
    }


def scores_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The scores by weight name, in module order."""
    return {name: module.scores for name, module in masked_modules(model).items()}


@torch.no_grad()
def current_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks that act now, bool on the CPU, each in its weight's shape, by weight name in module order."""
    return {
        name: over_weight((module.scores > module.threshold).cpu(), module.weight)
        for name, module in masked_modules(model).items()
    }


def set_trainable(model: nn.Module, *, weights: bool, scores: bool, heads: bool) -> None:
    """Say which of the three kinds of parameters gradients reach.

    weights  everything in the stock encoder body, and a decoder matrix (tied or not).
    scores   the masks' scores; the pooler's never train, because no pretraining loss reaches it.
    heads    language-modelling head without its decoder matrix, and the other objectives' heads.
    """
    backbone = backbone_of(model)
    body = getattr(backbone, "base_model", backbone)
    in_body = {id(parameter) for parameter in body.parameters()}
    for name, parameter in model.named_parameters():
        if name.endswith("scores"):
            parameter.requires_grad_(scores and "pooler" not in name)
        elif id(parameter) in in_body or name.endswith("decoder.weight"):
            parameter.requires_grad_(weights)
        else:
            parameter.requires_grad_(heads)


def dense_state(module: nn.Module) -> dict[str, Tensor]:
    """`module.state_dict()` without scores and thresholds: what a saved model holds, its masks saved beside it."""
    own = {
        f"{name}.{kind}" if name else kind
        for name, one in module.named_modules()
        if isinstance(one, Masked)
        for kind in ("scores", "threshold")
    }
    return {name: value for name, value in module.state_dict().items() if name not in own}
