"""The meta-learner's mixture rules over tasks: each task stands where pretraining has an objective.

The rules look at rows held out of the training splits, never at the dev splits that are reported. Updates are
synchronous and in this process: a policy counts from the very step after which it was computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mlpt.downstream.features import Features
from mlpt.downstream.multitask_data import Collator
from mlpt.downstream.multitask_model import MultitaskModel, TaskBatch
from mlpt.downstream.samplers import PolicySampler
from mlpt.meta.context import MetaContext
from mlpt.meta.policy import Evidence
from mlpt.meta.rules import RULES
from mlpt.randomness import numpy_generator


class TaskedModel(nn.Module):
    """A `MultitaskModel` as rules call a model: by the name of what is trained, and its inputs."""

    def __init__(self, model: MultitaskModel, names: Sequence[str]):
        super().__init__()
        self.model = model
        self.objectives = dict.fromkeys(names)

    def forward(self, objective: str, inputs: TaskBatch) -> Tensor:
        """Scalar loss of a batch of one task."""
        return self.model(inputs)


@dataclass(frozen=True)
class TaskContext(MetaContext):
    """What a rule sees: batches of one task each, out of `train` and `dev` (collators, not blocks of text)."""

    train: Any
    dev: Any

    def _inputs(self, blocks: Any, purpose: str, objective: str, size: int, texts: int, noise: int, index: int) -> Any:
        """`size` rows of task `objective`; labelled rows carry no corruption, so `noise` addresses nothing."""
        task = self.objectives.index(objective)
        count = len(blocks.tasks[task])
        drawn = numpy_generator(self.seed, f"{purpose}/texts", texts, index).choice(count, size, replace=count < size)
        batch = blocks([(task, int(row)) for row in drawn])
        return batch.to(next(self.model.parameters()).device)


class TaskLearner:
    """Updates the policy of a `PolicySampler` every `interval` steps by the rule that it names."""

    def __init__(
        self,
        sampler: PolicySampler,
        model: MultitaskModel,
        optimizer: torch.optim.AdamW,
        train: Sequence[Features],
        dev: Sequence[Features],
    ):
        self.sampler, self.model, self.optimizer = sampler, TaskedModel(model, sampler.names), optimizer
        self.train, self.dev = Collator(train), Collator(dev)
        rule = sampler.config.learner
        self.rule = RULES[rule.rule](rule, sampler.names)
        sampler.adopt(replace(sampler.policy, mixture=self.rule.first_mixture()))

    def update_if_due(self, step: int, losses: Mapping[str, float]) -> dict[str, Any] | None:
        """Adopt the rule's next policy at steps 0, interval, 2 * interval, ...; returns figures for the log.

        `losses` are the tasks' mean training losses since the last update. The model keeps weights, mode and moments.
        """
        if step % self.sampler.config.interval:
            return None
        training = self.model.model.training
        self.model.eval()
        context = TaskContext(
            self.model, self.optimizer, self.train, self.dev, self.sampler.seed, self.sampler.batch_size, step
        )
        draws = dict(self.sampler.draws)  # all from the policy in force: it changes here alone
        mixture = self.sampler.policy.mixture
        evidence = Evidence(draws, dict(losses), {name: sum(draws.values()) * mixture[name] for name in mixture})
        learned = self.rule.update(self.sampler.policy, evidence, context)
        self.sampler.adopt(replace(learned, version=self.sampler.policy.version + 1))
        self.model.train(training)
        return {"mixture": dict(self.sampler.policy.mixture), "policy": self.sampler.policy.version, **context.report}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The rule's state: JSON values and tensors."""
        return self.rule.state(), self.rule.tensors()

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state()`."""
        self.rule.load_state(state, tensors)
