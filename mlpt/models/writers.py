"""What writes training batches: MetaLMO's teacher (Shen, 2021) and the masker, behind one interface for their objective
and for the rules that train them.

A writer holds a network that is no part of the model in training. Hard samples are addressed: whoever has the network's
weights, the text and the generator's state draws the same tokens.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.attention_mask import attention_mask
from mlpt.models.masker import build_masker, draw_loss, draw_positions
from mlpt.models.pairs import auxiliary_loss, describe_pairs, draw_pair, pair_loss, soft_pair
from mlpt.models.soft import soft_hidden, token_cross_entropy
from mlpt.models.teacher import Pair, build_teacher
from mlpt.objectives.base import Inputs, attention_mask_of
from mlpt.objectives.counted_masking import CountedMaskingConfig, drawn_count, mask_counted, mlm_token
from mlpt.objectives.mlm import masked_inputs
from mlpt.objectives.teacher_settings import TeacherMadeConfig

_ALL = 0.9  # mass of one kind of output from which a teacher counts as collapsed


@dataclass(frozen=True)
class SoftInputs(Inputs):
    """A micro-batch of distributions over the vocabulary in place of tokens; `input_ids` is the text they came from.

    probabilities  (batch, length, vocabulary) float, the inputs.
    wanted         the same for the targets, or (batch, length) int64 tokens.
    real           (batch, length) bool, the positions that count.
    """

    probabilities: Tensor | None = None
    wanted: Tensor | None = None
    real: Tensor | None = None


def soft_inputs(pair: Pair, tokens: Tensor, pad: int) -> SoftInputs:
    """The batch of a soft pair: padding of the text is neither attended to nor predicted."""
    return SoftInputs(tokens, attention_mask_of(tokens, pad), None, None, None, None, *pair, tokens != pad)


def soft_loss(model: Any, inputs: SoftInputs) -> Tensor:
    """Cross entropy of soft inputs in nats, differentiable in both distributions."""
    if inputs.probabilities is None or inputs.wanted is None or inputs.real is None:
        raise ValueError("these inputs hold no distributions")
    hidden = soft_hidden(model.backbone, inputs.probabilities, attention_mask(inputs, model.backbone.config))
    logits = model.token_logits(hidden.flatten(0, 1)).unflatten(0, inputs.input_ids.shape)
    size = inputs.probabilities.shape[-1]  # a table may have more rows than there are tokens
    return token_cross_entropy(logits[..., :size], inputs.wanted, inputs.real)


class BatchWriter(Protocol):
    """Makes batches of text with a network.

    network  its module: in evaluation mode, on the CPU as texts are, no part of any model.
    """

    network: nn.Module

    def write(self, tokens: Tensor, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        """A hard sample of the text (batch, length), and minus its log-probability in nats a token: a scalar with the
        network's graph."""
        ...

    def soft(self, tokens: Tensor) -> Pair:
        """Inputs and targets as distributions (batch, length, vocabulary) with the network's graph; fixed targets as
        tokens."""
        ...

    def auxiliary(self, tokens: Tensor, generator: torch.Generator) -> Tensor | None:
        """A loss that keeps the network near plain masked language modelling; None: there is none."""
        ...

    def entropy(self, tokens: Tensor) -> Tensor:
        """Of what is drawn, in nats a token: a scalar with the network's graph."""
        ...

    def describe(self, tokens: Tensor) -> dict[str, float]:
        """Figures of what it writes for this text."""
        ...

    def collapsed(self, figures: dict[str, float]) -> str | None:
        """What is wrong with such figures, in one line; None: nothing."""
        ...


class PairWriter:
    """MetaLMO's teacher: it writes the input, and the target too unless that stays the text."""

    def __init__(self, config: TeacherMadeConfig, vocabulary: Vocabulary):
        self.network: nn.Module = build_teacher(config.network, vocabulary, config.seed, config.may_write_padding)
        self.network.eval()
        self._writes_targets, self._vocabulary = config.teacher == "pairs", vocabulary

    def write(self, tokens: Tensor, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        pad, logits = self._vocabulary.pad, self._logits(tokens)
        drawn = draw_pair(logits, tokens, pad, generator)
        real = tokens != pad
        if self._writes_targets:
            loss = pair_loss(logits, drawn, Pair(real, real))
        else:
            loss, drawn = token_cross_entropy(logits.inputs, drawn.inputs, real), Pair(drawn.inputs, tokens)
        # Padding that was written inside a text is padding to the student.
        positions = (drawn.inputs != pad).view(-1).nonzero().squeeze(1)
        mask = attention_mask_of(drawn.inputs, pad)
        return Inputs(drawn.inputs, mask, positions, drawn.targets.reshape(-1)[positions]), loss

    def soft(self, tokens: Tensor) -> Pair:
        pair = soft_pair(self._logits(tokens))
        return pair if self._writes_targets else Pair(pair.inputs, tokens)

    def auxiliary(self, tokens: Tensor, generator: torch.Generator) -> Tensor | None:
        vocabulary = self._vocabulary
        text, first = tokens.cpu(), mlm_token(vocabulary)
        masked, labels = mask_counted(text, vocabulary, generator, CountedMaskingConfig(), first)
        device = tokens.device
        return auxiliary_loss(self.network, tokens, masked.to(device), labels.to(device), vocabulary.pad)  # type: ignore[arg-type]

    def entropy(self, tokens: Tensor) -> Tensor:
        real = tokens != self._vocabulary.pad
        written = [one[real].float().log_softmax(-1) for one in self._logits(tokens)]
        kept = written if self._writes_targets else written[:1]
        return torch.stack([entropy_of(one).mean() for one in kept]).mean()

    def describe(self, tokens: Tensor) -> dict[str, float]:
        with torch.no_grad():
            return describe_pairs(self._logits(tokens), tokens, self._vocabulary.pad, self._vocabulary.mask)

    def collapsed(self, figures: dict[str, float]) -> str | None:
        if figures["mask_share"] > _ALL:
            return f"the teacher writes the mask token at {figures['mask_share']:.0%} of the positions"
        for side, written in (("inputs", True), ("targets", self._writes_targets)):
            if written and figures[f"one_token_{side}"] > _ALL:
                return f"the teacher writes one token at {figures[f'one_token_{side}']:.0%} of its {side}"
        copied = figures["copied_inputs"], figures["copied_targets"] if self._writes_targets else 1.0
        if min(copied) > _ALL:
            return f"the teacher copies its text: {figures['copied_inputs']:.0%} of the input tokens"
        return None

    def _logits(self, tokens: Tensor) -> Pair:
        return Pair(*self.network(tokens, tokens != self._vocabulary.pad))


class MaskingWriter:
    """The masker: it chooses positions, and masked language modelling does the rest."""

    def __init__(self, config: TeacherMadeConfig, vocabulary: Vocabulary):
        how = config.masking
        self.network: nn.Module = build_masker(config.network if how.network else None, vocabulary, config.seed).eval()
        self._config, self._vocabulary = how, vocabulary

    def write(self, tokens: Tensor, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        scores, among = self._scores(tokens), ~self._vocabulary.is_special(tokens)
        counts = drawn_count(among.cpu(), self._config.budget, generator)
        turns = draw_positions(scores, among, counts, generator)
        text = tokens.cpu()
        fate = torch.rand(text.shape, generator=generator)
        inputs = masked_inputs(text, (turns >= 0).cpu(), fate, self._vocabulary, self._config, generator)
        return inputs.to(tokens.device), draw_loss(scores, among, turns)

    def soft(self, tokens: Tensor) -> Pair:
        raise UserError("a masker makes no soft samples: train it by meta.rules.teacher.rule=teacher_hard")

    def auxiliary(self, tokens: Tensor, generator: torch.Generator) -> Tensor | None:
        return None

    def entropy(self, tokens: Tensor) -> Tensor:
        logs = self._logs(tokens)  # (batch, length) of the first position drawn
        return entropy_of(logs).mean()

    def describe(self, tokens: Tensor) -> dict[str, float]:
        with torch.no_grad():
            scores, among = self._scores(tokens), ~self._vocabulary.is_special(tokens)
            found = scores[among].float()
            figures = {"entropy_positions": self.entropy(tokens).item()}
            return figures | {"score_spread": found.std(correction=0).item(), "budget": self._config.budget}

    def collapsed(self, figures: dict[str, float]) -> str | None:
        if figures["entropy_positions"] < 0.1:
            return f"the masker always takes the same positions: entropy {figures['entropy_positions']:.3f} nats"
        return None

    def _scores(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.network(tokens, tokens != self._vocabulary.pad)
        return found

    def _logs(self, tokens: Tensor) -> Tensor:
        among = ~self._vocabulary.is_special(tokens)
        return self._scores(tokens).float().masked_fill(~among, -torch.inf).log_softmax(1)


def make_writer(config: TeacherMadeConfig, vocabulary: Vocabulary) -> BatchWriter:
    """The writer that the objective's settings ask for, with its starting weights."""
    return MaskingWriter(config, vocabulary) if config.teacher == "masker" else PairWriter(config, vocabulary)


def entropy_of(logs: Tensor) -> Tensor:
    """(...) entropy in nats of distributions given by their logarithms (..., n), which may be -inf."""
    finite = logs.masked_fill(logs == -torch.inf, 0.0)  # before the product: 0 * inf has no gradient
    return -(logs.exp() * finite).sum(-1)


def flat_weights(network: nn.Module) -> Tensor:
    """(n,) float32 on the CPU: a copy of all parameters, flattened and joined in their order."""
    return parameters_to_vector(network.parameters()).detach().float().cpu().clone()


def load_flat(network: nn.Module, weights: Tensor) -> None:
    """The inverse of `flat_weights`. Raises `UserError` for weights of another network or vocabulary."""
    parameters = list(network.parameters())
    size = sum(one.numel() for one in parameters)
    if weights.numel() != size:
        raise UserError(
            f"the teacher to go on with has {weights.numel()} weights and this run's {size}: it is of another size or "
            "another vocabulary; keep objectives and tokenizer as they were"
        )
    with torch.no_grad():
        vector_to_parameters(weights.to(parameters[0], copy=True), parameters)


def detached(inputs: SoftInputs) -> SoftInputs:
    """The same batch without the network's graph: leaves that require a gradient where they are distributions."""
    wanted = inputs.wanted
    if inputs.probabilities is None or wanted is None:
        raise ValueError("these inputs hold no distributions")
    leaf = wanted.detach().requires_grad_() if wanted.is_floating_point() else wanted
    return replace(inputs, probabilities=inputs.probabilities.detach().requires_grad_(), wanted=leaf)
