"""The meta-learner's mixture rules over tasks: each task stands where pretraining has an objective.

The rules look at rows held out of the training splits, never at the dev splits that are reported. Updates are
synchronous and in this process: a policy counts from the very step after which it was computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlpt.data.batch import Arm
from mlpt.downstream.multitask.data import Collator
from mlpt.downstream.multitask.model import MultitaskModel, TaskBatch
from mlpt.downstream.samplers import PolicySampler
from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.learner import Updates
from mlpt.meta.policy import MIXTURE, Evidence, Policy
from mlpt.meta.rules import make_rules
from mlpt.randomness import numpy_generator
from mlpt.storage.state import State
from mlpt.tasks.features import Features


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

    train: Any = None
    dev: Any = None

    def train_inputs(self, arm: str, size: int, index: int) -> Any:
        return self._rows(self.train, f"meta-train/{arm}", arm, size, self.step, index)

    def dev_inputs(self, arm: str, size: int, index: int, texts: int, noise: int) -> Any:
        """Labelled rows carry no corruption, so `noise` addresses nothing."""
        return self._rows(self.dev, f"meta-dev/{arm}", arm, size, texts, index)

    def _rows(self, blocks: Any, purpose: str, arm: str, size: int, texts: int, index: int) -> Any:
        task = self.trained.index(arm)
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
        try:
            rules = make_rules({MIXTURE: sampler.config.learner}, sampler.names)
        except UserError as error:  # which calls the rule's settings as pretraining does
            raise UserError(str(error).replace(f"meta.rules.{MIXTURE}", "sampler.learner")) from error
        self.updates = Updates(rules, sampler.config.lookahead)
        sampler.adopt(self.updates.first())

    def update_if_due(self, step: int, losses: Mapping[str, float]) -> dict[str, Any] | None:
        """Adopt the rule's next policy at steps 0, interval, 2 * interval, ...; returns figures for the log.

        `losses` are the tasks' mean training losses since the last update. The model keeps weights, mode and moments.
        """
        if step % self.sampler.config.interval:
            return None
        training = self.model.model.training
        self.model.eval()
        names = self.sampler.names
        context = TaskContext(
            self.model,
            self.optimizer,
            {name: Arm(name, name, name) for name in names},
            names,
            dict.fromkeys(names, 1 / len(names)),
            {},
            self.sampler.seed,
            self.sampler.batch_size,
            step,
            train=self.train,
            dev=self.dev,
        )
        draws = dict(self.sampler.draws)  # all from the policy in force: it changes here alone
        policy = self.sampler.policy
        mixture = policy.values(MIXTURE)
        evidence = Evidence(draws, dict(losses), {name: sum(draws.values()) * mixture[name] for name in mixture})
        parts = self.updates.parts(policy, evidence, context)
        self.sampler.adopt(Policy(policy.version + 1, parts))
        self.model.train(training)
        adopted = self.sampler.policy
        return {"mixture": dict(adopted.values(MIXTURE)), "policy": adopted.version, **context.report}

    def state(self) -> State:
        """The rules' state."""
        return self.updates.state()

    def load_state(self, state: State) -> None:
        """Go on from `state()`."""
        self.updates.load_state(state)
