"""Pretraining losses of a subnetwork: MLM loss and perplexity, distance to the dense model, density of each layer.

TAMT, section 5: the two losses that are to predict how well a subnetwork transfers.
"""

import copy
from typing import Any, Literal

import numpy as np
import torch

from mlpt.data.batch import Rows
from mlpt.models.masked import backbone_of
from mlpt.objectives.distill import Distillation, hidden_distance
from mlpt.objectives.mlm import MaskedLM
from mlpt.randomness import numpy_generator, torch_generator
from mlpt.reporting.summary import perplexity
from mlpt.sparsity.artefacts import MaskFile, fit, zero_pruned
from mlpt.sparsity.making import layer_density


@torch.no_grad()
def evaluate_pretraining(
    model: Any,
    blocks: Rows,
    vocabulary: Any,
    file: MaskFile | None = None,
    batches: int | None = 16,
    batch_size: int = 32,
    seed: int = 42,
    padding: Literal["out", "in"] = "out",
    token_types: Literal["zero", "pair"] = "zero",
    check_base: bool = True,
) -> dict[str, Any]:
    """Losses of `model` (a dense `Encoder`) under the masks of `file`, on fixed rows of held-out `blocks`.

    Returns {mlm_loss (nats), perplexity, kd_cosine, kd_mse, density, layers, blocks}; KD losses are means over layers
    against the dense model in eval mode, on texts with one corrupted token. As published, batch means are averaged.

    batches      how many, of rows that `seed` draws; None: every row of `blocks` in order, as published (the last
                 batch, which may be smaller, counts like the others).
    padding      `out`, or `in` as published: padded positions count in the KD losses.
    token_types  `zero`, or `pair` as published for BERT: 1 for the second paragraph of a pair, in the KD losses.
    The model leaves as it came: dense, in its mode.
    """
    was_training = model.training
    masks = fit(file, model, check_base) if file is not None else {}
    student, teacher = model.eval(), None
    if masks:
        student, teacher = copy.deepcopy(model), backbone_of(model).base_model
        zero_pruned(student, masks)
    order = _rows(len(blocks), batches, batch_size, seed)
    distill = Distillation(Distillation.Config(padding=padding, token_types=token_types), vocabulary)
    try:
        means = _means(student, teacher, blocks, order, MaskedLM(MaskedLM.Config(), vocabulary), distill, seed)
    finally:
        model.train(was_training)
    layers = layer_density(masks)
    overall = file.description.density if file is not None else 1.0
    return {
        "mlm_loss": means[0],
        "perplexity": perplexity(means[0]),
        "kd_cosine": means[1],
        "kd_mse": means[2],
        "density": overall,
        "layers": layers,
        "blocks": sum(map(len, order)),
    }


def _rows(count: int, batches: int | None, batch_size: int, seed: int) -> list[np.ndarray]:
    """The rows of each batch, ascending."""
    if batches is None:
        return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    drawn = numpy_generator(seed, "evaluation-rows").permutation(count)
    number = max(1, min(batches, count // batch_size))
    return [np.sort(drawn[start : start + batch_size]) for start in range(0, number * batch_size, batch_size)]


def _means(
    model: Any, teacher: Any, blocks: Rows, order: list[np.ndarray], mlm: MaskedLM, distill: Distillation, seed: int
) -> list[float]:
    device = next(model.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64)
    for batch, rows in enumerate(order):
        chosen = blocks.batch(rows)
        inputs = mlm.corrupt(chosen, torch_generator(seed, "evaluation-noise/mlm", batch)).to(device)
        sums[0] += mlm.loss(model, inputs).double().cpu()
        if teacher is None:
            continue
        inputs = distill.corrupt(chosen, torch_generator(seed, "evaluation-noise/distill", batch)).to(device)
        real = inputs.attention_mask if distill.config.padding == "out" else None
        states = model.hidden_states(inputs)[1:]
        typed = {} if inputs.token_types is None else {"token_type_ids": inputs.token_types}
        targets = teacher(inputs.input_ids, attention_mask=inputs.attention_mask, output_hidden_states=True, **typed)
        pairs = list(zip(states, targets.hidden_states[1:], strict=True))
        sums[1] += sum(float(hidden_distance(own, dense, "cosine", real)) for own, dense in pairs) / len(pairs)
        sums[2] += sum(float(hidden_distance(own, dense, "mse", real)) for own, dense in pairs) / len(pairs)
    return (sums / len(order)).tolist()
