"""Pretraining losses of a subnetwork: MLM loss and perplexity, distance to the dense model, density of each layer.

TAMT, section 5: the two losses that are to predict how well a subnetwork transfers.
"""

import math
from typing import Any

import numpy as np
import torch

from mlpt.data.rows import Rows
from mlpt.models.masked import attach_scores, backbone_of, remove_scores
from mlpt.objectives.distill import Distillation, dense_copy, hidden_distance
from mlpt.objectives.mlm import MaskedLM
from mlpt.randomness import numpy_generator, torch_generator
from mlpt.sparsity.artefacts import MaskFile, fit
from mlpt.sparsity.making import layer_density
from mlpt.sparsity.scores import scores_of_mask


@torch.no_grad()
def evaluate_pretraining(
    model: Any,
    blocks: Rows,
    vocabulary: Any,
    file: MaskFile | None = None,
    batches: int = 16,
    batch_size: int = 32,
    seed: int = 42,
    padding: str = "out",
    check_base: bool = True,
) -> dict[str, Any]:
    """Losses of `model` (a dense `Encoder`) under the masks of `file`, on fixed rows of held-out `blocks`.

    Returns {mlm_loss (nats), perplexity, kd_cosine, kd_mse, density, layers}; KD losses are means over layers against
    the dense model in eval mode, on texts with one corrupted token. As published, batch means are averaged.
    padding  `out`, or `in` as published: padded positions count in the KD losses.
    The model leaves as it came: dense, in its mode.
    """
    was_training = model.training
    masks = fit(file, model, check_base) if file is not None else {}
    teacher = dense_copy(backbone_of(model)).base_model.eval() if masks else None
    if masks:
        attach_scores(model, {name: scores_of_mask(mask) for name, mask in masks.items()})
    model.eval()
    try:
        means = _means(model, teacher, blocks, vocabulary, batches, batch_size, seed, padding)
    finally:
        if masks:
            remove_scores(model)
        model.train(was_training)
    layers = layer_density(masks)
    overall = file.description.density if file is not None else 1.0
    return {
        "mlm_loss": means[0],
        "perplexity": math.exp(min(means[0], 700.0)),
        "kd_cosine": means[1],
        "kd_mse": means[2],
        "density": overall,
        "layers": layers,
    }


def _means(
    model: Any, teacher: Any, blocks: Rows, vocabulary: Any, batches: int, batch_size: int, seed: int, padding: str
) -> list[float]:
    mlm, distill = MaskedLM(MaskedLM.Config(), vocabulary), Distillation(Distillation.Config(), vocabulary)
    device = next(model.parameters()).device
    order = numpy_generator(seed, "evaluation-rows").permutation(len(blocks))
    batches = max(1, min(batches, len(blocks) // batch_size))
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in range(batches):
        tokens = blocks.tokens(np.sort(order[batch * batch_size : (batch + 1) * batch_size]))
        inputs = mlm.corrupt(tokens, torch_generator(seed, "evaluation-noise/mlm", batch)).to(device)
        sums[0] += mlm.loss(model, inputs).double().cpu()
        if teacher is None:
            continue
        inputs = distill.corrupt(tokens, torch_generator(seed, "evaluation-noise/distill", batch)).to(device)
        real = inputs.attention_mask if padding == "out" else None
        states = model.hidden_states(inputs)[1:]
        targets = teacher(inputs.input_ids, attention_mask=inputs.attention_mask, output_hidden_states=True)
        pairs = list(zip(states, targets.hidden_states[1:], strict=True))
        sums[1] += sum(float(hidden_distance(own, dense, "cosine", real)) for own, dense in pairs) / len(pairs)
        sums[2] += sum(float(hidden_distance(own, dense, "mse", real)) for own, dense in pairs) / len(pairs)
    return (sums / batches).tolist()
