"""From a configuration to the parts of a run, without Ray: what a worker, the actor and a debugger build."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlpt.arms import Arms, arms_of
from mlpt.config import RunConfig
from mlpt.data.labelled import labelled_source
from mlpt.data.sources import Sources
from mlpt.logs import Event, quiet_libraries
from mlpt.meta.learner import MetaLearner
from mlpt.meta.policy import MIXTURE
from mlpt.meta.rules import make_rules, rule_class
from mlpt.models.encoder import Encoder, build_encoder
from mlpt.models.hooks import StepHook, all_as_saved
from mlpt.models.sharded import shard_layers
from mlpt.objectives import make_objectives
from mlpt.objectives.base import Objective
from mlpt.objectives.labelled import FittedTask, Labelled
from mlpt.objectives.prediction import TokenPrediction
from mlpt.reporting.boards import Boards
from mlpt.sparsity.config import mask_encoder, mask_hooks, masks_in_force, save_final_masks
from mlpt.storage.mirror import Remote, run_checkpoints
from mlpt.tasks import whole_task
from mlpt.training.arm_rows import ArmRows
from mlpt.training.group import Group
from mlpt.training.loop import Loop
from mlpt.training.optimizer import make_optimizer
from mlpt.training.outer import LocalSource, Outer, PolicySource
from mlpt.training.pretraining import Pretraining
from mlpt.training.reference import AverageReference
from mlpt.training.samples import Samples
from mlpt.training.state import load_model_tensors, model_tensors, whole_tensors
from mlpt.training.tracker import Tracker


def open_sources(config: RunConfig, blocks: str) -> Sources:
    """The rows of a prepared folder, those of the target's own texts, and those of labelled tasks."""
    within = config.model.attend_within == "document"
    sources = Sources.open(blocks, config.data.mix, config.meta.texts, tells_documents=within)
    for name in [*config.tasks, *config.measured_tasks]:
        sources.add(name, labelled_source(name, config.labelled, sources.train))
    return sources


def build_model(config: RunConfig, sources: Sources) -> Encoder:
    """The encoder with its starting weights, the same in every process."""
    objectives = make_objectives(config.objectives, sources.vocabulary) | labelled_objectives(config, sources)
    model = build_encoder(config.model, sources.vocabulary, objectives, sources.block_size, config.seed)
    if config.masks is not None:
        mask_encoder(config.masks, model, config.model.pretrained, config.seed)
    for objective in objectives.values():
        objective.prepare_data(sources.train)
        objective.prepare(model)  # after masking: a teacher shares the weights that masking froze
    return model


def labelled_objectives(config: RunConfig, sources: Sources) -> dict[str, Objective]:
    """The objectives of the labelled tasks, by task; of those that do not train only where their rows are there."""
    made: dict[str, Objective] = {
        name: Labelled.of(whole_task(name, config.labelled), sources.vocabulary) for name in config.tasks
    }
    for name in config.measured_tasks:
        if name in sources:
            made[name] = fitted = FittedTask.of(whole_task(name, config.labelled), sources.vocabulary)
            rows = sources[name].train
            fitted.support = rows.batch(np.arange(min(len(rows), config.labelled.fit_rows)))
    return made


def arms_on(config: RunConfig, domains: Sequence[str]) -> Arms:
    """The arms of the run on text of these `domains`."""
    texts, mix = config.meta.texts is not None, config.data.mix
    return arms_of(list(config.objectives), domains, mix, texts, config.tasks, config.measured_tasks)


def arms_of_text(config: RunConfig, sources: Sources) -> Arms:
    """The arms of the run, whatever its rules. Raises `UserError` for a domain of too little text or a wrong target."""
    for name in config.data.sources or ():
        sources.check(name)
    arms = arms_on(config, sources.domains)
    for source in dict.fromkeys(arm.source for arm in arms.every.values()):
        sources.check(source)
    arms.weights(config.meta.weights, "meta.target")
    return arms


def arms_in(config: RunConfig, sources: Sources) -> Arms:
    """The arms of the run. Raises `UserError` where a rule, a mix or the target names what there is not."""
    arms = arms_of_text(config, sources)
    make_rules(config.meta.rules, arms.trained)
    arms.sampling(config.train.sampling)
    return arms


def build_learner(config: RunConfig, sources: Sources, device: torch.device) -> MetaLearner:
    """The meta-learner with a model and an optimiser of its own, like the workers'."""
    model = build_model(config, sources).to(device)
    optimizer = make_optimizer(model, config.train.optimizer)
    arms = arms_in(config, sources)
    steps = config.train.total_steps(sources.block_size)
    return MetaLearner(config.meta, model, optimizer, sources, arms, config.seed, config.train.batch_size, steps)


def learns(config: RunConfig) -> bool:
    """True if anything about this run is adapted while it runs."""
    return any(rule_class(part, rule.rule).learns for part, rule in config.meta.rules.items())


def first_mixture(config: RunConfig, arms: Arms) -> Mapping[str, float]:
    """The mixture before the first update, in the run's first state."""
    return make_rules(config.meta.rules, arms.trained)[MIXTURE].first().values


def threads_of(cpus: float) -> int:
    """Threads of torch in a process with so many logical CPUs: one where it shares a core."""
    return max(1, int(cpus))


def step_hooks(config: RunConfig, model: Encoder, sources: Sources, run_dir: Path | None) -> list[StepHook]:
    """What else happens between steps: averaged references, mask training's threshold resets, iterative pruning."""
    averages: list[StepHook] = [
        AverageReference(objective)
        for objective in model.objectives.values()
        if isinstance(objective, TokenPrediction) and objective.reference is not None and objective.reference.decay
    ]
    if config.masks is None:
        return averages
    out = None if run_dir is None else run_dir / "masks"
    steps_per_epoch = max(1, len(sources.train) // config.train.batch_size)
    return averages + mask_hooks(config.masks, model, config.seed, out, config.model.pretrained, steps_per_epoch)


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
    sources = open_sources(config, blocks)
    model = build_model(config, sources)
    sharded = config.train.parallel == "fsdp" and group.world > 1
    if sharded:
        shard_layers(model, group.device)
    arms = arms_in(config, sources)
    if source is None and group.leads and learns(config):
        source = LocalSource(build_learner(config, sources, group.device), threads_of(config.runtime.meta_cpus))
    target = arms.weights(config.meta.weights, "meta.target") if config.meta.target else arms.selecting()
    sampling, most = arms.sampling(config.train.sampling), config.data.max_repeats
    rows = ArmRows(config.train, model, sources, arms.every, arms.trained, target, group, config.seed, most, sampling)
    hooks = step_hooks(config, model, sources, run_dir if group.leads else None)
    if group.leads and config.report.samples and not sharded:  # which are passes of one rank
        steps, times = config.train.total_steps(sources.block_size), config.report.samples
        hooks.append(Samples(run_dir, sources, arms.every.values(), steps, times, config.seed, group.device))
    outer = Outer(config.meta, arms.trained, source, group, sampling)
    tracker = Tracker(run_dir, group, tell, Boards(config.report, config.name, config.model_dump(mode="json")))
    checkpoints = run_checkpoints(run_dir, config.train.keep, remote, tracker.warn)
    work = Pretraining(config.train, rows, outer, group, checkpoints, tracker, hooks, should_stop)
    loop = Loop(work, must_save, config.runtime.replay_every, config.runtime.compare_ranks)
    loop.run()
    summary = work.summary(loop.step, loop.resumed_at)
    summary["first_mixture"] = dict(first_mixture(config, arms))
    if config.meta.target:
        before, after = summary["held_out_before"], summary["held_out"]
        losses = {"before": rows.target_loss(before), "after": rows.target_loss(after)}
        summary["target"] = {"weights": target, **losses}
    trained = whole_tensors(model_tensors(model)) if sharded else {}
    if group.leads and sharded:
        model = build_model(config, sources)
        load_model_tensors(model, trained)
    if group.leads:
        if config.masks is not None:
            with all_as_saved(hooks, model):
                save_final_masks(config.masks, model, run_dir / "model", loop.step, config.seed)
                summary["masks"] = masks_in_force(config.masks, model)
        model.save(run_dir / "model", sources.train.tokenizer())
        checkpoints.finish()
    return summary
