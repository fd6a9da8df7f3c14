"""Labelled rows as an objective: the class or the score of a text or of a pair of texts, one head a task.

A task that trains has the head of fine-tuning (a dense layer and a projection of the first token's state). A task that
a target looks at, and that nothing trains on, has none: whenever its loss is wanted, a linear layer on the mean state
is fitted to some of its training rows, with the encoder as it is. That layer is the minimum of a convex function, so
that it follows from the encoder's weights alone; a look-ahead takes it as fixed (as META-TARTAN does with the heads of
its snapshots, Dery et al., 2021).
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.base import Inputs, Objective, PretrainingModel, attention_mask_of
from mlpt.settings import Settings
from mlpt.tasks import Task

PENALTY = 1e-2  # of the squared weights of a fitted layer, on states of unit variance
_ITERATIONS = 100  # of L-BFGS at most
_CHUNK = 64  # rows whose states are computed at once


class Labelled(Objective):
    """The cross-entropy of a row's class in nats, or the squared error of its score, mean over the rows."""

    name = "labelled"

    class Config(Settings):
        """outputs: classes, 1 for a regression. regression: labels are scores."""

        outputs: int
        regression: bool = False

    @classmethod
    def of(cls, task: Task, vocabulary: Vocabulary) -> Self:
        """The objective of a task, named after it."""
        made = cls(cls.Config(outputs=task.outputs, regression=task.kind == "regression"), vocabulary)
        made.name = task.name
        return made

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        """The rows as they are. Raises `ValueError` for rows without labels."""
        if batch.labels is None:
            raise ValueError(f"task '{self.name}' was given rows without labels")
        mask = attention_mask_of(batch.tokens, self.vocabulary.pad)
        return Inputs(batch.tokens, mask, targets=batch.labels, token_types=batch.types)

    def head(self, encoder_config: Any) -> nn.Module | None:
        width = encoder_config.hidden_size
        dropout = nn.Dropout(getattr(encoder_config, "hidden_dropout_prob", 0.0))
        return nn.Sequential(nn.Linear(width, width), nn.Tanh(), dropout, nn.Linear(width, self.config.outputs))

    def loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        first = model.hidden(inputs)[:, 0]  # (rows, hidden)
        return self.error(model.heads[self.name](first).float(), inputs)

    def error(self, outputs: Tensor, inputs: Inputs) -> Tensor:
        """The mean loss of `outputs`, (rows, outputs), by the labels of `inputs`."""
        if inputs.targets is None:
            raise ValueError(f"these inputs have no labels of task '{self.name}'")
        if self.config.regression:
            return F.mse_loss(outputs[:, 0], inputs.targets.to(outputs.dtype))
        return F.cross_entropy(outputs, inputs.targets)


class FittedTask(Labelled):
    """A task that nothing trains on: call `refresh` for new weights of the encoder, then `loss`."""

    support: Batch | None = None  # rows that the layer is fitted to
    _layer: tuple[Tensor, Tensor] | None = None  # (outputs, hidden) weight and (outputs,) bias

    def head(self, encoder_config: Any) -> None:
        return None

    @torch.no_grad()
    def refresh(self, model: PretrainingModel) -> None:
        """Fit the layer to the states that `model`, in evaluation mode, has of the supporting rows."""
        if self.support is None:
            raise ValueError(f"task '{self.name}' has no rows to fit its head to")
        inputs = self.corrupt(self.support, torch.Generator())
        device = next(model.parameters()).device  # type: ignore[attr-defined]
        states = torch.cat([_mean_state(model, one.to(device)) for one in _chunks(inputs)]).double()
        mean, scale = states.mean(0), states.std(0).clamp_min(1e-6)
        weight, bias = self._fit((states - mean) / scale, inputs.to(device))
        weight = weight / scale
        self._layer = (weight.float(), (bias - weight @ mean).float())

    def loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        if self._layer is None:
            raise ValueError(f"the head of task '{self.name}' is not fitted: call refresh(model) first")
        weight, bias = self._layer
        return self.error(F.linear(_mean_state(model, inputs).float(), weight, bias), inputs)

    @torch.enable_grad()
    def _fit(self, states: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Weight (outputs, hidden) and bias (outputs,) of least loss plus PENALTY / 2 * squared weights."""
        weight = states.new_zeros(self.config.outputs, states.shape[1], requires_grad=True)
        bias = states.new_zeros(self.config.outputs, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.error(F.linear(states, weight, bias), inputs) + PENALTY / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return weight.detach(), bias.detach()


def _mean_state(model: PretrainingModel, inputs: Inputs) -> Tensor:
    """(rows, hidden): the mean of the last states of a row's tokens."""
    hidden = model.hidden(inputs)
    if inputs.attention_mask is None:
        return hidden.mean(1)
    real = inputs.attention_mask.unsqueeze(-1).to(hidden.dtype)  # (rows, length, 1)
    return (hidden * real).sum(1) / real.sum(1)


def _chunks(inputs: Inputs) -> list[Inputs]:
    def parts(one: Tensor | None, number: int) -> list[Tensor | None]:
        return [None] * number if one is None else list(one.split(_CHUNK))

    ids = inputs.input_ids.split(_CHUNK)
    masks, types = parts(inputs.attention_mask, len(ids)), parts(inputs.token_types, len(ids))
    return [Inputs(one, mask, token_types=kind) for one, mask, kind in zip(ids, masks, types, strict=True)]
