"""Many small models of one architecture trained at once: one pass of batched products in place of one pass a model.

A model of a few thousand weights spends its time in starting kernels, not in computing. `torch.func.vmap` turns the
step of one model into the step of all of them; recorded once as plain tensor operations, it starts each kernel once.
Every model has its own batches, rates, dropout and gradient norm: what differs between them must only be data.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlpt.meta.engines.adam import adam_step

Forward = Callable[..., Any]  # one model at its weights, called as the module is
Loss = Callable[..., Tensor]  # (forward, *tensors of one model's batch) -> scalar
Mode = Literal["plain", "recorded", "compiled"]


class Many:
    """Models, their AdamW (all weights decay) and their common step.

    models    equal but for the values of their parameters, without buffers; float32. They are read, not changed.
    loss      (forward, *batch) -> scalar loss of one model. It runs under `vmap`: shapes follow from shapes alone.
    betas, eps, weight_decay   AdamW's.
    max_norm  of each model's gradient; None: not clipped.
    mode      "recorded": the step is recorded as plain operations, once for every shape of batches, in a second or two.
              "compiled": and that is compiled, which takes a minute and needs a C++ compiler
              (`mlpt.training.compiling`). "plain": neither. The first and the last have equal results; a compiled step
              draws its dropout from another stream.

    `weights` is (models, parameters of one model): all that changes, with the two moments of the same shape.
    Raises `ValueError` for models that have buffers or differ in their parameters.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        loss: Loss,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        max_norm: float | None = None,
        mode: Mode = "recorded",
    ):
        self._model, self._loss, self.max_norm = models[0], loss, max_norm
        named = dict(models[0].named_parameters())
        self._names, self._shapes = list(named), [one.shape for one in named.values()]
        self._sizes = [one.numel() for one in named.values()]
        shapes = {tuple((name, one.shape) for name, one in model.named_parameters()) for model in models}
        if len(shapes) > 1 or any(True for _ in models[0].buffers()):
            raise ValueError("models that are trained together have the same parameters and no buffers")
        flat = [torch.cat([one.detach().flatten() for one in model.parameters()]) for model in models]
        self.weights = torch.stack(flat)
        self.moments = (torch.zeros_like(self.weights), torch.zeros_like(self.weights))
        self.steps = 0
        self._adamw = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        self._adamw |= {"decoupled_weight_decay": True, "amsgrad": False, "maximize": False}
        self._run = Recorded(self._advance, mode)

    def __len__(self) -> int:
        return len(self.weights)

    def step(self, batch: Sequence[Tensor], rates: Tensor, seed: int) -> Tensor:
        """One AdamW step of every model; the losses before it, (models,).

        batch  tensors (models, ...): what `loss` takes, one row a model.
        rates  (models,) learning rates. A model whose rate is 0 stays as it is.
        seed   of this step's dropout. The noise of one model depends on its place among the others.
        """
        self.steps += 1
        count = torch.tensor(float(self.steps))
        values = (self.weights, *self.moments, count, rates.unsqueeze(1), *batch)
        # The other attention kernels have no rule for batches of models.
        with sdpa_kernel(SDPBackend.MATH):
            self.weights, first, second, losses = self._run(*values, seed=seed)
        self.moments = (first, second)
        return losses

    @torch.no_grad()
    def apply(self, function: Callable[..., Any], *shared: Tensor) -> Any:
        """`function(forward, *shared)` of every model in evaluation mode, stacked: (models, ...) for each result."""
        training = self._model.training
        self._model.eval()
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return vmap(lambda weights: function(self._forward(weights), *shared))(self.weights)
        finally:
            self._model.train(training)

    def state(self, number: int) -> dict[str, Tensor]:
        """Copies of one model's parameters by name."""
        return {name: one.clone() for name, one in self._named(self.weights[number]).items()}

    def _advance(
        self, weights: Tensor, first: Tensor, second: Tensor, steps: Tensor, rates: Tensor, *batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and moments after step number `steps` (scalar) at `rates` (models, 1), and the losses before it."""
        # Each model draws dropout of its own.
        gradients, losses = vmap(grad_and_value(self._loss_at), randomness="different")(weights, *batch)
        if self.max_norm is not None:
            norms = gradients.norm(dim=1, keepdim=True)
            gradients = gradients * (self.max_norm / (norms + 1e-6)).clamp(max=1.0)
        weights, moments = adam_step(weights, gradients, (first, second), steps, self._adamw | {"lr": rates})
        return weights, *moments, losses

    def _loss_at(self, weights: Tensor, *batch: Tensor) -> Tensor:
        return self._loss(self._forward(weights), *batch)

    def _forward(self, weights: Tensor) -> Forward:
        named = self._named(weights)
        return lambda *args, **kwargs: functional_call(self._model, named, args, kwargs)

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        """Views of one model's flat weights (parameters,) by name."""
        parts = zip(self._names, weights.split(self._sizes), self._shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}


class Recorded:
    """A pure function of tensors, recorded once for all arguments of equal shapes; modes as of `Many`."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], mode: Mode):
        self.function, self.mode = function, mode
        self._made: dict[Any, Callable[..., tuple[Tensor, ...]]] = {}

    def __call__(self, *values: Tensor, seed: int) -> tuple[Tensor, ...]:
        """`function(*values)`; `seed` is of its dropout."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            run = self._for(values)
            torch.manual_seed(seed)  # after recording, which draws too
            return run(*values)

    def _for(self, values: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        if self.mode == "plain":
            return self.function
        key = tuple((one.shape, one.dtype) for one in values)
        if key not in self._made:
            recorded = _shortened(make_fx(self.function)(*values))
            self._made[key] = torch.compile(recorded) if self.mode == "compiled" else recorded
        return self._made[key]


_VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}


def _shortened(recorded: GraphModule) -> GraphModule:
    """Without the operations that `vmap` puts in and that change nothing: a third of them, each of which takes time."""
    for node in recorded.graph.nodes:
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
            continue
        source = node.args[0]
        if node.target in _VIEWS:
            source = _viewed(source)
            node.update_arg(0, source)
        elif node.target is torch.ops.aten.mul.Scalar and node.args[1] == 1:
            node.replace_all_uses_with(source)
        if node.target in {*_VIEWS, torch.ops.aten.expand.default} and _shape(node) == _shape(source):
            node.replace_all_uses_with(source)
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


def _viewed(node: Node) -> Node:
    """What a view is of; a view of a view is one too."""
    while node.target in _VIEWS and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _shape(node: Node) -> Any:
    return node.meta["tensor_meta"].shape
