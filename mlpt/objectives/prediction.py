"""Predicting tokens at some positions through the language-modelling head: what all masked objectives share."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.base import Inputs, Objective, PretrainingModel
from mlpt.objectives.capacity import weighted_mean
from mlpt.objectives.knobs import Knob
from mlpt.objectives.smoothing import Reference, reference_logits, smoothed_cross_entropy


class TokenPrediction(Objective):
    """Subclasses choose the positions, end `corrupt` with `smoothed`, and have `smoothing` in their `Config`."""

    def __init__(self, config: Any, vocabulary: Vocabulary):
        super().__init__(config, vocabulary)
        self.knobs: dict[Knob, float] = {}  # settings that a meta-learner has turned, for training texts
        self.learned: tuple[Knob, ...] = ()  # those that it turns
        self.reference: Reference | None = None  # of smoothing towards other weights than the model's own

    @classmethod
    def knob_settings(cls, settings: Mapping[str, Any]) -> dict[Knob, float | None]:
        """The value that `settings` give to each knob that they have; None: to one that does nothing with them."""
        how = settings["smoothing"]
        return {"smoothing": how["weight"] if how["kind"] != "none" else None}

    def turn(self, learned: Collection[Knob], values: Mapping[str, float]) -> None:
        """Let the knobs `learned` have `values`; those without one are as the settings say."""
        self.learned = tuple(learned)
        self.knobs = {name: values[name] for name in self.learned if name in values}

    def prepare(self, model: Any) -> None:
        how = self.config.smoothing
        if how.kind == "token" and how.reference != "current":
            self.reference = Reference(model, how.decay if how.reference == "average" else None)

    def example(self, batch: Batch, generator: torch.Generator) -> Inputs | None:
        return self.corrupt(batch, generator)

    def smoothed(self, inputs: Inputs, batch: Batch) -> Inputs:
        """The `inputs` made of `batch` with its documents and, where it is of the training split, the weight of
        smoothing."""
        inputs = replace(inputs, documents=batch.documents)
        if self.config.smoothing.is_plain or batch.split != "train":
            return inputs
        return replace(inputs, smoothing=torch.tensor(self.knobs.get("smoothing", self.config.smoothing.weight)))

    def loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        if inputs.smoothing is None and inputs.weights is None:
            return predicted_tokens_loss(model, inputs)
        return self._weighted_loss(model, inputs)

    def _weighted_loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        # This pass first: autocast would otherwise keep weights that the reference cast without a gradient.
        logits, targets = predicted_logits(model, inputs)
        how = self.config.smoothing
        if inputs.smoothing is None:
            losses = F.cross_entropy(logits, targets, reduction="none")  # (n,)
        else:
            losses = smoothed_cross_entropy(logits, targets, inputs.smoothing, self._reference(model, inputs))
        if how.denominator == "predicted":
            return weighted_mean(losses, inputs.weights)
        mask, weights = inputs.attention_mask, inputs.weights
        total = losses.sum() if weights is None else (losses * weights).sum()
        return total / (inputs.input_ids.numel() if mask is None else mask.sum())

    def _reference(self, model: Any, inputs: Inputs) -> Any:
        how = self.config.smoothing
        if how.kind != "token":
            return "uniform" if how.kind == "uniform" else None
        if how.reference == "current":
            return reference_logits(model, inputs)
        if self.reference is None:
            raise ValueError(f"'{self.name}' has no reference yet: build the model, then call prepare(model) once")
        return reference_logits(self.reference.on(inputs.input_ids.device), inputs)


def predicted_logits(model: PretrainingModel, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(n, vocabulary) float32 logits and (n,) targets of `inputs.positions`. The head sees only those: with 15 % of the
    positions that spares 85 % of the largest matrix product."""
    hidden = model.hidden(inputs).flatten(0, 1)  # (batch * length, hidden)
    positions, targets = predicted(inputs)
    return model.token_logits(hidden.index_select(0, positions)).float(), targets


def predicted_tokens_loss(model: PretrainingModel, inputs: Inputs) -> Tensor:
    """Mean cross-entropy in nats over `inputs.positions`; a batch without any gives zero, connected to every weight
    used."""
    return mean_cross_entropy(*predicted_logits(model, inputs), inputs.weights)


def predicted(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """`positions` and `targets`, both (n,). Raises `ValueError` for inputs that another objective made."""
    if inputs.positions is None or inputs.targets is None:
        raise ValueError("these inputs say nothing about which positions to predict")
    return inputs.positions, inputs.targets


def mean_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the rows of `logits` (n, classes), by their `weights`; zero with a gradient path when n is 0."""
    if weights is not None:
        return weighted_mean(F.cross_entropy(logits, targets, reduction="none"), weights)
    if len(logits) == 0:
        return logits.sum()
    return F.cross_entropy(logits, targets)
