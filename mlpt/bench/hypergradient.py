"""Look-aheads of K = 1, 2, 4, 8 steps on a plain torch model: time, memory, and whether the gradient is right.

A tied language model (4 layers x 256, vocabulary 8,192), four weighed losses, 16 x 64 tokens a step, a cold AdamW: rows
of the embedding that no text has touched have a second moment of zero. Right is what float64 says (engine `higher`,
which tests compare with differences of plain training). TorchOpt and Betty run beside ours where they are installed.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from mlpt.bench.harness import Row, machine, seconds_interleaved
from mlpt.bench.lookahead_peers import peers
from mlpt.bench.meta import peak_of
from mlpt.meta.engines.base import InnerLoss, Made
from mlpt.meta.hypergradients import lookahead
from mlpt.randomness import torch_generator

VOCABULARY, HIDDEN, LAYERS, HEADS = 8192, 256, 4, 4
ROWS, LENGTH, LOSSES = 16, 64, 4
STEPS = (1, 2, 4, 8)
OPTIONS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
ENGINES = ("higher", "forward_over_reverse", "finite_difference")
HALF = "alignment, target on half a batch"  # its gradient is another one, and has no cosine
_TIMED_TWICE = 2  # steps; longer look-aheads are timed once


class Layer(nn.Module):
    """A pre-norm transformer layer without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(2))
        self.attend, self.mix = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.widen, self.narrow = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, states: Tensor) -> Tensor:
        """(batch, length, hidden) -> the same."""
        batch, length, _ = states.shape
        parts = self.attend(self.norms[0](states)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(*parts).transpose(1, 2).reshape(states.shape)
        states = states + self.mix(seen)
        return states + self.narrow(gelu(self.widen(self.norms[1](states))))


class TiedModel(nn.Module):
    """Predicts every token from all, by a decoder that is the embedding; returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.Sequential(*[Layer() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(HIDDEN)
        self.decoder = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """(batch, length) int64 twice -> a scalar, in nats."""
        logits = self.decoder(self.norm(self.layers(self.embedding(tokens))))
        return cross_entropy(logits.flatten(0, 1), targets.flatten())


def run(rows: int = ROWS, steps: tuple[int, ...] = STEPS) -> list[Row]:
    """Each engine and peer in training steps of the same batch, its peak memory, and the cosine with what is right."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = TiedModel().to(device)
    exact_model = TiedModel().to(device).double()
    exact_model.load_state_dict(model.state_dict())
    found: list[Row] = []
    for count in steps:
        inner = [_weighted(_batches(k, rows, device)) for k in range(count)]
        outer = _held_out(_batches(-1, rows, device)[0])
        optimizer = torch.optim.AdamW(model.parameters(), **OPTIONS)
        right = _ours(exact_model, torch.optim.AdamW(exact_model.parameters(), **OPTIONS), inner, outer, "higher")()
        cases = {name: _ours(model, optimizer, inner, outer, name) for name in ENGINES}
        if count == 1:
            cases = {"one_step": _ours(model, optimizer, inner, outer, "one_step"), **cases}
            cases["alignment"] = _aligned(inner[0], outer, model)
            tokens, targets = _batches(-1, rows, device)[0]
            cases[HALF] = _aligned(inner[0], _held_out((tokens[: rows // 2], targets[: rows // 2])), model)
        missing = [name for name, peer in peers().items() if peer is None]
        cases |= {name: _peer(peer, model, inner, outer) for name, peer in peers().items() if peer is not None}
        found += _measured(model, inner[0], cases, right, count)
        found += [Row("hypergradient", f"{name}: not installed", 0.0, None, None, "", 0, machine()) for name in missing]
    return found


def _measured(
    model: nn.Module, loss: InnerLoss, cases: dict[str, Callable[[], Tensor]], right: Tensor, count: int
) -> list[Row]:
    step = _training_step(model, loss)
    gradients = {}
    for name, solve in list(cases.items()):
        try:
            gradients[name] = solve()
        except Exception as error:  # of a peer: said, and the others go on
            gradients[name] = torch.full_like(right, float("nan"))
            cases.pop(name)
            print(f"{name}, K={count}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    rounds = 3 if count <= _TIMED_TWICE else 1
    step_seconds, *seconds = seconds_interleaved(step, *cases.values(), rounds=rounds, warmup=0)
    gc.collect()
    plain = peak_of(step)
    rows = [Row("hypergradient", f"training step beside K={count}", step_seconds, None, None, "s", plain, machine())]
    for (name, solve), taken in zip(cases.items(), seconds, strict=True):
        gc.collect()
        peak = peak_of(solve)
        label = f"{name}, K={count}"
        rows.append(Row("hypergradient", label, taken / step_seconds, None, None, "training steps", peak, machine()))
    gradients.pop(HALF, None)
    for name, gradient in gradients.items():
        label = f"{name}, K={count}, gradient"
        cosine = float(torch.cosine_similarity(gradient.double(), right, dim=0))
        unit = "cosine with float64" if cosine == cosine else "not finite"
        rows.append(Row("hypergradient", label, cosine if cosine == cosine else 0.0, None, None, unit, 0, machine()))
    return rows


def _ours(
    model: nn.Module, optimizer: torch.optim.Optimizer, inner: list[InnerLoss], outer: InnerLoss, engine: str
) -> Callable[[], Tensor]:
    def solve() -> Tensor:
        logits = _logits(model)
        return lookahead(model, optimizer, {"logits": logits}, inner, outer, engine).gradients["logits"]

    return solve


def _aligned(inner: InnerLoss, outer: InnerLoss, model: nn.Module) -> Callable[[], Tensor]:
    """The step is made before, as in training, which is not part of the look-ahead."""
    stepped = TiedModel().to(next(model.parameters()).device)
    stepped.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(stepped.parameters(), **OPTIONS)
    gradients, total = [], {}
    for i in range(LOSSES):
        optimizer.zero_grad()
        (_part(inner, stepped, i)).backward()
        gradients.append({name: one.grad.clone() for name, one in stepped.named_parameters() if one.grad is not None})
    weights = _logits(stepped).detach().softmax(0)
    for name, one in stepped.named_parameters():
        one.grad = total[name] = sum(w * each[name] for w, each in zip(weights, gradients, strict=True))
    optimizer.step()
    made = Made(total, gradients)

    def solve() -> Tensor:
        logits = {"logits": _logits(stepped)}
        return lookahead(stepped, optimizer, logits, inner, outer, "alignment", made=made).gradients["logits"]

    return solve


def _peer(
    peer: Callable[..., Tensor], model: nn.Module, inner: list[InnerLoss], outer: InnerLoss
) -> Callable[[], Tensor]:
    return lambda: peer(model, OPTIONS, _logits(model), inner, outer)


def _training_step(model: nn.Module, loss: InnerLoss) -> Callable[[], None]:
    """A step of a copy, so that all look-aheads start alike."""
    twin = TiedModel().to(next(model.parameters()).device)
    optimizer = torch.optim.AdamW(twin.parameters(), **OPTIONS)

    def step() -> None:
        optimizer.zero_grad()
        loss(twin, {"logits": _logits(twin).detach()}).backward()
        optimizer.step()

    return step


def _logits(model: nn.Module) -> Tensor:
    first = next(model.parameters())
    return torch.linspace(-0.5, 0.5, LOSSES, dtype=first.dtype, device=first.device).requires_grad_()


def _batches(k: int, rows: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Of inner step k, a batch (tokens, targets) for each loss, together a step's rows; of step -1 each has as many.

    Losses differ in the words that they are about.
    """
    made = []
    for i in range(LOSSES):
        generator = torch_generator(0, "lookahead", k + 1, i)
        shape = (rows // LOSSES if k >= 0 else rows, LENGTH)
        low, high = i * VOCABULARY // 8, (i + 3) * VOCABULARY // 8
        tokens = torch.randint(low, high, shape, generator=generator)
        targets = tokens.roll(1, dims=1) if i % 2 else tokens
        made.append((tokens.to(device), targets.to(device)))
    return made


def _weighted(batches: list[tuple[Tensor, Tensor]]) -> InnerLoss:
    def loss(forward, outer):
        weights = outer["logits"].softmax(0)
        return torch.stack([w * forward(*batch) for w, batch in zip(weights, batches, strict=True)]).sum()

    return loss


def _part(loss: InnerLoss, model: nn.Module, i: int) -> Tensor:
    """One of the losses alone."""
    corner = torch.full((LOSSES,), -1e3, device=next(model.parameters()).device)
    corner[i] = 0.0
    return loss(model, {"logits": corner})


def _held_out(batch: tuple[Tensor, Tensor]) -> InnerLoss:
    return lambda forward, outer: forward(*batch)
