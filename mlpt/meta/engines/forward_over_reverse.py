"""Engine `forward_over_reverse`: the adjoint of the inner steps, its Hessian-vector products exact.

A product with the Hessian is the derivative of a gradient along one direction: forward-mode differentiation of a
backward pass (Pearlmutter 1994; for meta-gradients MixFlow-MG, Kemaev et al. 2025). It keeps no graph of a graph.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlpt.meta.engines.adjoint import Adjoint
from mlpt.meta.engines.base import Lookahead, forward_at, named


class ForwardOverReverse(Adjoint):
    """The exact gradient for any number of steps, with the activations of one pass and their tangents at a time.

    Second-order passes run attention on the MATH backend: the fused kernels have no forward-mode derivative.
    """

    def second_order(
        self, problem: Lookahead, weights: dict[str, Tensor], direction: dict[str, Tensor], k: int, by_weights: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            moving = {
                name: forward_ad.make_dual(one.detach().requires_grad_(by_weights), direction[name])
                if name in direction
                else one.detach().requires_grad_(by_weights and one.requires_grad)
                for name, one in weights.items()
            }
            inner = problem.steps[k].loss(forward_at(problem, moving), problem.outer)
            names = [name for name, one in moving.items() if one.requires_grad]
            if not inner.requires_grad:
                return {}, named(problem.outer, [None] * len(problem.outer))
            sources = [moving[name] for name in names] + list(problem.outer.values())
            found = torch.autograd.grad(inner, sources, allow_unused=True)
            slopes = [None if one is None else forward_ad.unpack_dual(one).tangent for one in found]
        curvature = {name: one for name, one in zip(names, slopes, strict=False) if one is not None}
        return curvature, named(problem.outer, slopes[len(names) :])
