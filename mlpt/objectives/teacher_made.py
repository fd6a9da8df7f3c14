"""Batches that a teacher writes (MetaLMO, Shen 2021), or whose masked positions it chooses.

The teacher is no part of the model: neither the optimiser nor a snapshot nor an export sees it. Its weights are a part
of the policy, and a rule of `meta.rules.teacher` learns them; without one it stays as it began.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.objectives.base import Inputs, Objective
from mlpt.objectives.prediction import predicted
from mlpt.objectives.teacher_settings import TeacherMadeConfig

if TYPE_CHECKING:
    from mlpt.models.writers import BatchWriter, SoftInputs


class TeacherMade(Objective):
    """Predict the targets that the teacher wrote, or chose, at every position that has one."""

    name = "teacher_made"
    shown_as = "teacher"

    class Config(TeacherMadeConfig):
        """As of every teacher."""

    def __init__(self, config: TeacherMadeConfig, vocabulary: Vocabulary):
        from mlpt.models.writers import flat_weights, make_writer  # a room above this one

        super().__init__(config, vocabulary)
        self.writer: BatchWriter = make_writer(config, vocabulary)
        self._first = flat_weights(self.writer.network)

    def obey(self, weights: Tensor | None) -> None:
        """Take over the teacher's weights (n,) float32; None: those it began with.

        Raises `UserError` for another teacher's.
        """
        from mlpt.models.writers import load_flat

        load_flat(self.writer.network, self._first if weights is None else weights)

    def prepare_data(self, train: Any) -> None:
        size, positions = train.block_size, self.config.network.positions
        reads = self.config.teacher != "masker" or self.config.masking.network
        if reads and size > positions:
            raise UserError(
                f"blocks have {size} tokens and the teacher takes {positions}: set "
                f"objectives.{self.name}.network.positions={size}"
            )

    def prepare(self, model: Any) -> None:
        if self.config.samples == "soft":
            from mlpt.models.soft import check_soft_inputs

            check_soft_inputs(model.backbone, self.vocabulary.size)

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Inputs:
        with torch.no_grad():
            return self.soft(batch) if self.config.samples == "soft" else self.hard(batch, generator)[0]

    def soft(self, batch: Batch) -> "SoftInputs":
        """The batch as the distributions that the teacher has for it, with its graph."""
        from mlpt.models.writers import soft_inputs

        made = soft_inputs(self.writer.soft(batch.tokens), batch.tokens, self.vocabulary.pad)
        return replace(made, documents=batch.documents)

    def hard(self, batch: Batch, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        """A hard sample, and minus its log-probability in nats a token: a scalar with the teacher's graph."""
        made, loss = self.writer.write(batch.tokens, generator)
        return replace(made, documents=batch.documents), loss

    def example(self, batch: Batch, generator: torch.Generator) -> Inputs:
        """A hard sample, also where training takes distributions."""
        return self.hard(batch, generator)[0]

    def loss(self, model: Any, inputs: Inputs) -> Tensor:
        from mlpt.models.writers import SoftInputs, soft_loss

        if isinstance(inputs, SoftInputs):
            return soft_loss(model, inputs)
        positions, targets = predicted(inputs)
        logits = model.token_logits(model.hidden(inputs).flatten(0, 1).index_select(0, positions))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))
