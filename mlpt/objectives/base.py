"""What a pretraining objective is: it corrupts tokens into inputs, and it has a head and a loss.

An objective is one file with one class; `mlpt.objectives.OBJECTIVES` is the dict that names them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from mlpt.data.batch import Batch, Split
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives.knobs import Choice
from mlpt.settings import Settings

IGNORED = -100  # the label of a position that no loss reads, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Inputs:
    """One micro-batch as a model takes it.

    input_ids        (batch, length) int64.
    attention_mask   (batch, length) bool, True where a token may be attended to; None: no padding.
    positions        (n,) int64, predicted positions as indices into the flattened batch * length; None: none.
    targets          (n,) int64, the class (or token id) to predict at each of `positions`; of labelled rows, which have
                     no positions, (batch,) int64 classes or float32 scores.
    token_types      (batch, length) int64, 0 for a first text and 1 for a second; None: all zero.
    smoothing        () float in [0, 1], how much of each target is the smoothing distribution; it may require a
                     gradient. None: plain targets, as for every held-out text.
    weights          (n,) float32, what the loss of each of `positions` counts in the mean; None: all alike. Those that
                     only fill a buffer (`mlpt.objectives.capacity`) have 0.
    choice           how `positions` were drawn, where a learned setting decides that; it stays on the CPU.
    causal           whether a position may attend to itself and to earlier ones alone.
    documents        (batch, length) int64: a position may attend to those of its own number alone; None: to all.

    `positions` are found where the corruption runs, on the CPU: the model never waits for the device to count them.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    positions: Tensor | None = None
    targets: Tensor | None = None
    token_types: Tensor | None = None
    smoothing: Tensor | None = None
    weights: Tensor | None = field(default=None, kw_only=True)
    choice: Choice | None = field(default=None, kw_only=True)
    causal: bool = field(default=False, kw_only=True)
    documents: Tensor | None = field(default=None, kw_only=True)

    def to(self, device: torch.device | str) -> "Inputs":
        """The same micro-batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Inputs":
        """The same micro-batch in memory from which a GPU copies by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        tensors = {one.name: value for one in fields(self) if isinstance(value := getattr(self, one.name), Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)

    def labels(self) -> Tensor:
        """(batch, length) int64: `targets` laid out at their `positions`, IGNORED elsewhere."""
        flat = torch.full((self.input_ids.numel(),), IGNORED, dtype=torch.int64, device=self.input_ids.device)
        if self.positions is not None and self.targets is not None:
            flat[self.positions] = self.targets
        return flat.view(self.input_ids.shape)

    @classmethod
    def from_labels(cls, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> "Inputs":
        """Inputs whose predicted positions are those where `labels` (batch, length) is not IGNORED."""
        flat = labels.reshape(-1)
        positions = (flat != IGNORED).nonzero().squeeze(1)
        return cls(input_ids, attention_mask, positions, flat[positions])


class PretrainingModel(Protocol):
    """What a loss may ask of the model (`mlpt.models.encoder.Encoder` is the real one)."""

    heads: Any  # nn.ModuleDict: head of each objective by the objective's name

    def hidden(self, inputs: Inputs) -> Tensor:
        """Last hidden states, (batch, length, hidden)."""

    def hidden_states(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Embedding output and the output of every layer, each (batch, length, hidden)."""

    def token_logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) -> (n, vocabulary): the language-modelling head, its decoder tied to the embeddings."""


class Objective:
    """One pretraining objective. Subclasses set `name` and `Config` and define `corrupt` and `loss`.

    name  what people call it, which names its head: the class's own, or that of an objective with another `type`.
    shown_as     who makes the texts of `example`.
    shown_split  of which split they are: one that the objective treats as it does training text.
    """

    name: str
    shown_as: ClassVar[Literal["masking", "guide", "teacher"]] = "masking"
    shown_split: Split = "dev"

    class Config(Settings):
        """No settings."""

    def __init__(self, config: Any, vocabulary: Vocabulary):
        self.config = config
        self.vocabulary = vocabulary

    @classmethod
    def saved_models(cls, settings: Mapping[str, Any]) -> list[str]:
        """Folders or hub names of the models that an objective with these settings loads; their tokenizer must be that
        of the text."""
        return []

    @classmethod
    def refuses(cls, settings: Mapping[str, Any], config: Any) -> str | None:
        """Why a run of this configuration (`mlpt.config.RunConfig`) can't have the objective with these settings, in
        one line; None: it can."""
        return None

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        """Make a training input of a batch of rows, `vocabulary.pad` where padded.

        Where the batch tells its `documents`, the inputs do too: as they are, or moved as the tokens were.

        Pure: an equal batch and an equal generator state give equal inputs. The batch is not changed. It may run in a
        thread beside the step before, and so reads nothing that a step changes, only what a new policy does.
        """
        raise NotImplementedError(f"{type(self).__name__}.corrupt")

    def capacity(self, tokens: int) -> int | None:
        """How many of a micro-batch's `tokens` (rows times length) are predicted at most, but for batches rarer than
        one in 1e15; its loss then reads `Inputs.weights`. None: its inputs keep the shapes that they have."""
        return None

    def example(self, batch: Batch, generator: torch.Generator) -> Inputs | None:
        """A training input for people to look at, token beside token of the text, whose targets are tokens; None: there
        is nothing that could be shown so."""
        return None

    def hard_tokens(self, batch: Batch) -> Tensor | None:
        """(batch, length) bool: the tokens that a guide takes for worth predicting; None: there is no guide."""
        return None

    def head(self, encoder_config: Any) -> nn.Module | None:
        """The module that this objective adds to the encoder; None when it needs none of its own."""
        return None

    def prepare_data(self, train: Any) -> None:
        """Called once with the training blocks (a guide reads there what it knows of them). Raises `UserError`."""

    def prepare(self, model: Any) -> None:
        """Called once when the model has its starting weights (a distillation objective copies its teacher here)."""

    def refresh(self, model: Any) -> None:
        """Called before losses are measured at new weights, in evaluation mode: heads that are fitted are fitted."""

    def loss(self, model: PretrainingModel, inputs: Inputs) -> Tensor:
        """Scalar float32 loss in nats, the mean over what is predicted; zero (with a gradient path) if nothing is."""
        raise NotImplementedError(f"{type(self).__name__}.loss")


def attention_mask_of(tokens: Tensor, pad: int) -> Tensor | None:
    """(batch, length) bool, True at real tokens; None without padding, which keeps the fast attention kernels."""
    mask = tokens != pad
    return None if bool(mask.all()) else mask
