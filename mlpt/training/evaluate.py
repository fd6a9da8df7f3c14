"""Held-out losses: the same batches with the same noise at every evaluation, so that numbers can be compared."""

from collections.abc import Iterable

import numpy as np
import torch

from mlpt.data.rows import Rows
from mlpt.models.encoder import Encoder
from mlpt.randomness import numpy_generator, torch_generator
from mlpt.training.group import Group


@torch.no_grad()
def held_out_losses(
    model: Encoder,
    objectives: Iterable[str],
    blocks: Rows,
    batches: int,
    batch_size: int,
    seed: int,
    group: Group,
) -> dict[str, float]:
    """Mean loss in nats of each objective over `batches` fixed batches of `blocks`, in eval mode and float32.

    Rows and noise depend on `seed` alone. Ranks share the batches; every rank gets the same result.
    """
    was_training = model.training
    model.eval()
    order = numpy_generator(seed, "evaluation-rows").permutation(len(blocks))
    batches = max(1, min(batches, len(blocks) // batch_size))
    names = list(objectives)
    sums = torch.zeros(len(names), dtype=torch.float64)
    for batch in range(group.rank, batches, group.world):
        tokens = blocks.tokens(np.sort(order[batch * batch_size : (batch + 1) * batch_size]))
        for at, name in enumerate(names):
            noise = torch_generator(seed, f"evaluation-noise/{name}", batch)
            inputs = model.objectives[name].corrupt(tokens, noise)
            sums[at] += model(name, inputs.to(group.device)).double().cpu()
    model.train(was_training)
    means = group.sum(sums) / batches
    return dict(zip(names, means.tolist(), strict=True))
