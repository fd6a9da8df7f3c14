"""Held-out losses: the same batches with the same noise at every evaluation, so that numbers can be compared."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mlpt.data.batch import Arm, Source, Split
from mlpt.models.sharded import is_sharded
from mlpt.randomness import numpy_generator, torch_generator
from mlpt.training.group import Group


@torch.no_grad()
def held_out_losses(
    model: Any,
    arms: Mapping[str, Arm],
    sources: Mapping[str, Source],
    split: Split,
    batches: int,
    batch_size: int,
    seed: int,
    group: Group,
) -> dict[str, float]:
    """Mean loss in nats of each arm over `batches` fixed batches of its source, in eval mode and float32.

    Rows and noise depend on `seed` alone. Ranks share the batches; every rank gets the same result.
    """
    was_training = model.training
    model.eval()
    for name in dict.fromkeys(arm.objective for arm in arms.values()):
        model.objectives[name].refresh(model)
    places = {arm.name: at for at, arm in enumerate(arms.values())}
    sums = torch.zeros(len(arms), dtype=torch.float64)
    counts = torch.ones(len(arms), dtype=torch.float64)
    for name in dict.fromkeys(arm.source for arm in arms.values()):
        rows = sources[name].split(split)
        mine = [arm for arm in arms.values() if arm.source == name]
        order = numpy_generator(seed, "evaluation-rows").permutation(len(rows))
        number = max(1, min(batches, len(rows) // batch_size))
        for arm in mine:
            counts[places[arm.name]] = number
        rounds = -(-number // group.world) * group.world if is_sharded(model) else number
        for turn in range(group.rank, rounds, group.world):
            batch = turn % number  # ranks that share layers make equally many passes; those too many don't count
            own = rows.batch(np.sort(order[batch * batch_size : (batch + 1) * batch_size]))
            for arm in mine:
                noise = torch_generator(seed, f"evaluation-noise/{arm.name}", batch)
                inputs = model.objectives[arm.objective].corrupt(own.for_arm(arm.name), noise)
                loss = model(arm.objective, inputs.to(group.device)).double().cpu()
                sums[places[arm.name]] += loss if turn < number else 0.0
    model.train(was_training)
    means = group.sum(sums) / counts
    return dict(zip(arms, means.tolist(), strict=True))
