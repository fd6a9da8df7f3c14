"""What a rule may look at during one update: the model at the snapshot, meta-train and meta-dev batches, a report."""

from dataclasses import dataclass, field
from typing import Any

import torch

from mlpt.data.rows import Rows
from mlpt.objectives.base import Inputs
from mlpt.randomness import numpy_generator, torch_generator


@dataclass(frozen=True)
class MetaContext:
    """One update's view. All texts and all noise follow from (seed, purpose, step): nothing is drawn from a stream.

    model          the learner's own copy, in eval mode, at the snapshot's weights when the rule needs them.
    optimizer      its AdamW, with the snapshot's moments when the rule needs them, and the rate of the step to come.
    train, dev     blocks of the meta-train and the meta-dev split.
    batch_size     texts in a training batch.
    step           the snapshot's step.
    report         figures for the log, filled by the rule.
    """

    model: Any
    optimizer: torch.optim.AdamW
    train: Rows
    dev: Rows
    seed: int
    batch_size: int
    step: int
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def objectives(self) -> list[str]:
        return list(self.model.objectives)

    def train_inputs(self, objective: str, size: int, index: int) -> Inputs:
        """Batch `index` of `size` meta-train texts, corrupted by `objective`."""
        return self._inputs(self.train, f"meta-train/{objective}", objective, size, self.step, self.step, index)

    def dev_inputs(self, objective: str, size: int, index: int, texts: int, noise: int) -> Inputs:
        """Batch `index` of `size` meta-dev texts; the steps `texts` and `noise` address what is drawn."""
        return self._inputs(self.dev, f"meta-dev/{objective}", objective, size, texts, noise, index)

    @torch.no_grad()
    def dev_losses(self, batches: int, size: int | None, texts: int, noise: int) -> dict[str, float]:
        """Mean held-out loss of each objective in nats, over `batches` of `size` texts (default: a training batch)."""
        size = self.batch_size if size is None else size
        losses = {}
        for objective in self.objectives:
            inputs = (self.dev_inputs(objective, size, index, texts, noise) for index in range(batches))
            losses[objective] = sum(float(self.model(objective, one)) for one in inputs) / batches
        return losses

    def _inputs(
        self, blocks: Rows, purpose: str, objective: str, size: int, texts: int, noise: int, index: int
    ) -> Inputs:
        rows = numpy_generator(self.seed, f"{purpose}/texts", texts, index)
        # A data set smaller than the batch gives some of its texts twice.
        chosen = rows.choice(len(blocks), size, replace=len(blocks) < size)
        generator = torch_generator(self.seed, f"{purpose}/noise", noise, index)
        inputs: Inputs = self.model.objectives[objective].corrupt(blocks.tokens(chosen), generator)
        return inputs.to(next(self.model.parameters()).device)
