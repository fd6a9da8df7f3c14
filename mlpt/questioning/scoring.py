"""Scoring the tokens of blocks with a masked language model: evaluation mode, no gradient, bounded memory."""

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.masked import backbone_of
from mlpt.objectives.base import Inputs, attention_mask_of
from mlpt.objectives.smoothing import evaluating
from mlpt.questioning.config import QuestionConfig
from mlpt.questioning.metrics import UNMASKED, Metric, token_score
from mlpt.randomness import numpy_generator

# By device: tokens of a forward pass, and bytes of one chunk's logits (4 times the vocabulary for each token). A CPU
# wants both to stay near its caches, a GPU wants few launches.
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
LOGITS_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}
_LARGEST = 65504.0  # of float16


@torch.no_grad()
def score_tokens(
    model: Any,
    tokens: Tensor,
    rows: NDArray[np.int64],
    vocabulary: Vocabulary,
    config: QuestionConfig,
    documents: Tensor | None = None,
) -> dict[str, NDArray[np.float16]]:
    """Scores of `tokens` (n, length) int64, the blocks `rows` (n,), by each of `config.metrics`: (n, length) float16.

    documents  (n, length) int64, where a token is to be judged by its own document alone (`Inputs.documents`).

    Padding scores 0; special tokens are scored like others. `model` (an `Encoder`, on any device) keeps its mode.
    Raises UserError where the model's answers are no numbers.
    """
    real = tokens != vocabulary.pad  # (n, length)
    scores: dict[str, Tensor] = {metric: torch.zeros(tokens.numel()) for metric in config.metrics}
    unmasked: list[Metric] = [metric for metric in config.metrics if metric in UNMASKED]
    device = next(model.parameters()).device.type
    size = max(1, (config.batch_tokens or BATCH_TOKENS.get(device, 4096)) // tokens.shape[1])
    with evaluating(model):
        for first in range(0, len(tokens), size):
            part = slice(first, first + size)
            texts, there = tokens[part], real[part]
            inside = None if documents is None else documents[part]
            if unmasked:
                positions = first * tokens.shape[1] + there.reshape(-1).nonzero().squeeze(1)
                found = _answers(model, texts, texts, there, inside, vocabulary, unmasked, config)
                for metric in unmasked:
                    scores[metric][positions] = found[metric]
            if "pseudo_loss" in scores:
                found_here = _masked_losses(model, texts, there, inside, vocabulary, config)
                scores["pseudo_loss"].view(tokens.shape)[part] = found_here
    if "random" in scores:
        drawn = np.stack(
            [numpy_generator(config.seed, "question/random", int(row)).random(tokens.shape[1]) for row in rows]
        )
        scores["random"] = torch.where(real, torch.from_numpy(drawn).float(), 0.0)
    return {metric: _stored(score, tokens.shape, rows) for metric, score in scores.items()}


def _masked_losses(
    model: Any,
    texts: Tensor,
    real: Tensor,
    documents: Tensor | None,
    vocabulary: Vocabulary,
    config: QuestionConfig,
) -> Tensor:
    """(n, length) float32: each token's loss while it is masked, together with every stride-th neighbour."""
    losses = torch.zeros(texts.shape)
    place = torch.arange(texts.shape[1]) % config.stride  # (length,): the pass that masks a column
    for turn in range(min(config.stride, texts.shape[1])):
        masked = real & (place == turn)
        if masked.any():
            shown = texts.masked_fill(masked, vocabulary.mask)
            found = _answers(model, shown, texts, masked, documents, vocabulary, ["pseudo_loss"], config)
            losses[masked] = found["pseudo_loss"]
    return losses


def _answers(
    model: Any,
    shown: Tensor,
    texts: Tensor,
    asked: Tensor,
    documents: Tensor | None,
    vocabulary: Vocabulary,
    metrics: list[Metric],
    config: QuestionConfig,
) -> dict[Metric, Tensor]:
    """Scores (m,) float32 on the CPU of the m tokens of `texts` where `asked` holds, given `shown`; all (n, length)."""
    device = next(model.parameters()).device
    inputs = Inputs(shown, attention_mask_of(texts, vocabulary.pad), documents=documents).to(device)
    places = asked.reshape(-1).nonzero().squeeze(1)  # (m,)
    targets = texts.reshape(-1)[places].to(device)  # (m,)
    found: dict[Metric, list[Tensor]] = {metric: [] for metric in metrics}
    size = max(1, LOGITS_BYTES.get(device.type, 8 << 20) // (4 * model.config.vocab_size))
    with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
        hidden = model.hidden(inputs).flatten(0, 1)[places.to(device)]  # (m, hidden)
        for states, wanted in zip(hidden.split(size), targets.split(size), strict=True):
            log_probabilities = model.token_logits(states).log_softmax(1, dtype=torch.float32)  # (chunk, vocabulary)
            for metric in metrics:
                found[metric].append(token_score(log_probabilities, wanted, metric))
    return {metric: torch.cat([torch.empty(0, device=device), *parts]).cpu() for metric, parts in found.items()}


def _stored(score: Tensor, shape: torch.Size, rows: NDArray[np.int64]) -> NDArray[np.float16]:
    """As float16 from 0 up, never -0: readers compare the bits."""
    score = score.view(shape)
    if not bool(score.isfinite().all()):
        row = int(rows[int((~score.isfinite()).any(1).nonzero()[0])])
        raise UserError(f"the model's answers about block {row} are not numbers: its weights are damaged")
    return score.clamp(0, _LARGEST).abs().half().numpy()


def model_digest(model: nn.Module) -> str:
    """A name for the very weights of a model's backbone (as float32, by name and shape), whatever holds them: 32 hex
    digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(backbone_of(model).named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(np.ascontiguousarray(weight.detach().float().cpu().numpy()).view(np.uint8).data)
    return digest.hexdigest()
