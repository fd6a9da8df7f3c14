"""Learning the weights of two losses of any model: `python learn_loss_weights.py`.

Two sources of labelled points, one with labels drawn at random; a small clean set says what the model is for. At every
tenth step the weights of the two losses go down the held-out loss that one more AdamW step would reach.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mlpt.meta import lookahead
from mlpt.meta.engines import OneStep


class Classifier(nn.Module):
    """Called with points (n, 8) and labels (n,), it returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.layers(points), labels)


def learn(steps: int = 200) -> list[float]:
    """The weights of the clean and of the random source at the end of training."""
    torch.manual_seed(0)

    def points(n: int, is_random: bool) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 8)
        return x, torch.randint(0, 2, (n,)) if is_random else (x[:, 0] > 0).long()

    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    logits = torch.zeros(2, requires_grad=True)
    outer_optimizer = torch.optim.Adam([logits], lr=0.2)
    held_out, engine = points(64, is_random=False), OneStep()
    for step in range(steps):
        sources = [points(32, is_random=False), points(32, is_random=True)]

        def weighted(forward, outer, sources=sources):
            shares = outer["logits"].softmax(0)
            return sum(share * forward(*batch) for share, batch in zip(shares, sources, strict=True))

        if step % 10 == 9:
            found = lookahead(model, optimizer, {"logits": logits}, weighted, lambda f, _: f(*held_out), engine)
            logits.grad = found.gradients["logits"]
            outer_optimizer.step()
        optimizer.zero_grad()
        weighted(model, {"logits": logits.detach()}).backward()
        optimizer.step()
    return logits.softmax(0).tolist()


if __name__ == "__main__":
    print("weights of the clean and of the random source:", [round(weight, 2) for weight in learn()])
