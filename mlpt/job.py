"""From a configuration to the parts of a run, without Ray: what a worker, the actor and a debugger build."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mlpt.config import RunConfig
from mlpt.data.blocks import Blocks
from mlpt.logs import quiet_libraries
from mlpt.meta.learner import MetaLearner
from mlpt.meta.policy import Policy
from mlpt.meta.rules import RULES
from mlpt.meta.rules.base import MetaRule
from mlpt.models.encoder import Encoder, build_encoder
from mlpt.models.hooks import StepHook, all_as_saved
from mlpt.objectives import make_objectives
from mlpt.sparsity.config import mask_encoder, mask_hooks, masks_in_force, save_final_masks
from mlpt.training.group import Group
from mlpt.training.loop import Event, Loop, Splits
from mlpt.training.mirror import Remote
from mlpt.training.optimizer import make_optimizer
from mlpt.training.outer import LocalSource, Outer, PolicySource


def open_splits(blocks: str) -> Splits:
    """The train, dev and test blocks of a prepared folder."""
    return Splits(*(Blocks.open(blocks, split) for split in ("train", "dev", "test")))


def build_model(config: RunConfig, splits: Splits) -> Encoder:
    """The encoder with its starting weights, the same in every process."""
    objectives = make_objectives(config.objectives, splits.train.vocabulary)
    model = build_encoder(config.model, splits.train.vocabulary, objectives, splits.train.block_size, config.seed)
    if config.masks is not None:
        mask_encoder(config.masks, model, config.model.pretrained, config.seed)
    for objective in objectives.values():
        objective.prepare(model)  # after masking: a teacher shares the weights that masking froze
    return model


def build_learner(config: RunConfig, splits: Splits, device: torch.device) -> MetaLearner:
    """The meta-learner with a model and an optimiser of its own, like the workers'."""
    model = build_model(config, splits).to(device)
    optimizer = make_optimizer(model, config.train.optimizer)
    return MetaLearner(config.meta, model, optimizer, splits.train, splits.dev, config.seed, config.train.batch_size)


def mixture_rule(config: RunConfig) -> MetaRule:
    """The rule of the configuration, in its first state."""
    return RULES[config.meta.mixture.rule](config.meta.mixture, list(config.objectives))


def learns(config: RunConfig) -> bool:
    """True if anything about this run is adapted while it runs."""
    return RULES[config.meta.mixture.rule].learns or config.meta.masks is not None


def threads_of(cpus: float) -> int:
    """Threads of torch in a process with so many logical CPUs: one where it shares a core."""
    return max(1, int(cpus))


def step_hooks(config: RunConfig, model: Encoder, splits: Splits, run_dir: Path | None) -> list[StepHook]:
    """What else happens between steps: mask training's threshold resets, iterative pruning."""
    if config.masks is None:
        return []
    out = None if run_dir is None else run_dir / "masks"
    steps_per_epoch = max(1, len(splits.train) // config.train.batch_size)
    return mask_hooks(config.masks, model, config.seed, out, config.model.pretrained, steps_per_epoch)


def run_rank(
    config: RunConfig,
    blocks: str,
    run_dir: Path,
    group: Group,
    source: PolicySource | None = None,
    tell: Callable[[Event], None] = lambda event: None,
    must_save: Callable[[int], bool] = lambda step: False,
    should_stop: Callable[[], bool] = lambda: False,
    remote: Remote | None = None,
) -> dict[str, Any]:
    """Train as one rank and return the summary; rank 0 leaves the final model in `run_dir`/model.

    `source` serves policies to rank 0. None: a learner in this very process. A `remote` run is copied to its URI.
    Raises `RunStopped` when `should_stop` has said so on some rank.
    """
    quiet_libraries()
    splits = open_splits(blocks)
    model = build_model(config, splits)
    if source is None and group.leads and learns(config):
        source = LocalSource(build_learner(config, splits, group.device), threads_of(config.runtime.meta_cpus))
    rule = mixture_rule(config)
    policy = Policy(0, rule.first_mixture())
    moments = rule.needs_moments or config.meta.masks is not None
    outer = Outer(policy, source, group, config.meta.interval, config.meta.lag, moments, learns(config))
    loop = Loop(
        config.train,
        model,
        splits,
        outer,
        group,
        run_dir,
        config.seed,
        hooks=step_hooks(config, model, splits, run_dir if group.leads else None),
        tell=tell,
        must_save=must_save,
        should_stop=should_stop,
        tensorboard=config.report.tensorboard,
        remote=remote,
    )
    summary = loop.run()
    if group.leads:
        if config.masks is not None:
            with all_as_saved(loop.hooks, model):
                save_final_masks(config.masks, model, run_dir / "model", loop.step, config.seed)
                summary["masks"] = masks_in_force(config.masks, model)
        model.save(run_dir / "model", splits.train.tokenizer())
        loop.checkpoints.finish()
    return summary
