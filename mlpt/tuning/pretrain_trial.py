"""Trials that pretrain: the ordinary run of one point with one seed.

Small models train in Tune's own process, which is reused from trial to trial; several workers make it a nested run.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ray import tune

from mlpt.arms import LEARNED
from mlpt.config import RunConfig, RuntimeConfig, load_run_config
from mlpt.data.blocks import Blocks
from mlpt.errors import UserError
from mlpt.logs import Event, log_to_file
from mlpt.meta.learner import first_policy
from mlpt.meta.policy import MIXTURE
from mlpt.meta.rules import make_rules
from mlpt.reporting.display import Display
from mlpt.run.blocks import blocks_of, with_target_texts
from mlpt.run.build import arms_of_text, arms_on, learns, open_sources, run_rank, threads_of
from mlpt.run.local_paths import with_absolute_paths
from mlpt.run.saved import with_model_of_run
from mlpt.runtime.pretrain import pretrain_on_ray
from mlpt.settings import nested
from mlpt.sparsity.export import latency_when_exported
from mlpt.storage.checkpoint import COMMITTED, Checkpoints
from mlpt.training.group import Group, default_device
from mlpt.training.outer import policy_state
from mlpt.training.tracker import read_metrics
from mlpt.tuning.plan import Budget, Plan, Say, equal_parts
from mlpt.tuning.reporter import LATENCY, Reporter
from mlpt.tuning.searching import PAUSING
from mlpt.tuning.space import Space

_COMMIT_TIMEOUT_S = 300.0


class PretrainJob:
    """See `Job`. Metrics: `dev/NAME` is the meta-dev loss of an arm in nats, `dev/mean` their mean, `dev/target` the
    target's; `sparsity`; `latency` that of the model as `mlpt export` would write it (`latency_when_exported`)."""

    follow_up = "mlpt pretrain {} train.tokens=N"

    def config(self, space: Space, overrides: Mapping[str, Any], point: Mapping[str, Any], seed: int) -> RunConfig:
        one_worker, chosen = {"runtime": {"num_workers": 1}}, nested(space.settings(point))
        given = (one_worker, nested(space.base), overrides, chosen, {"seed": seed})
        return with_absolute_paths(with_model_of_run(load_run_config(space.recipe, *given)))

    def runtime(self, config: RunConfig, overrides: Mapping[str, Any]) -> RuntimeConfig:
        return config.runtime

    def check(self, space: Space, config: RunConfig) -> None:
        if config.meta.replicas > 1 and config.runtime.most_workers > 1:
            raise UserError("trials of several workers have one learner each: set meta.replicas=1")
        if config.data.mix == LEARNED and not config.data.sources:
            return  # which arms report is known once the text is
        measured = arms_on(config, list(config.data.sources or ())).every
        known = {"dev/mean", "dev/target", "sparsity", LATENCY, *(f"dev/{name}" for name in measured)}
        for metric in space.metrics:
            if metric not in known:
                there = ", ".join(sorted(known))
                raise UserError(f"space '{space.name}': no trial reports '{metric}'; there are {there}")

    def data(self, config: RunConfig, folder: Path, say: Say) -> tuple[str, int]:
        """Prepares the text, and the target's, once: what is wrong with either shows before any trial."""
        blocks = blocks_of(config, folder, Display("off"))
        config = with_target_texts(config, blocks, Display("off"))
        arms_of_text(config, open_sources(config, blocks))
        return blocks, Blocks.open(blocks, "train").block_size

    def budget(self, config: RunConfig, space: Space, length: int) -> Budget:
        """Pausing schedulers want a checkpoint at every evaluation; between two updates it would wait for an answer."""
        unit = config.meta.interval if space.scheduler in PAUSING and learns(config) else 1
        return equal_parts(space, config.train.batch_size * length, unit)

    def budgeted(self, config: RunConfig, space: Space, length: int) -> RunConfig:
        """`config` with the space's budget, cut into `evaluations` equal parts, each ended by an evaluation."""
        budget = self.budget(config, space, length)
        every = budget.every
        changes = {
            "tokens": None,
            "steps": budget.steps,
            "evaluate_every": every,
            "checkpoint_every": every if space.scheduler in PAUSING else max(every, budget.steps // 3),
            "keep": 1,
        }
        report = config.report.model_copy(update={"tensorboard": False, "progress": "off"})
        return config.model_copy(update={"train": config.train.model_copy(update=changes), "report": report})

    def train(self, config: RunConfig, plan: Plan, run_dir: Path, reporter: Reporter) -> None:
        config = with_target_texts(self.budgeted(config, plan.space, plan.length), plan.data, Display("off"))
        _open_run_dir(run_dir, config)
        _take_over(run_dir, config)
        run = _on_several_workers if plan.is_nested else _in_this_process
        summary = run(config, plan.data, run_dir, _teller(config, run_dir, reporter))
        held_out = {f"held_out/{name}": loss for name, loss in summary["held_out"].items()}
        timed = {LATENCY: latency_when_exported(run_dir / "model")} if LATENCY in plan.space.metrics else {}
        speed = {name: summary[name] for name in ("tokens_per_second", "busy_seconds")}
        # From the file: a trial that crashed after its last evaluation doesn't evaluate again.
        last = [line for line in read_metrics(run_dir) if "dev" in line][-1]
        reporter.finish({**_measured(config, last), **held_out, **timed, **speed})
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)

    def recipe(self, config: RunConfig, space: Space, length: int) -> str:
        train = config.train.model_copy(update={"tokens": space.tokens})
        return config.model_copy(update={"name": space.name, "run_dir": None, "train": train}).to_yaml()


def _in_this_process(config: RunConfig, blocks: str, run_dir: Path, tell: Callable[[Event], None]) -> dict[str, Any]:
    torch.set_num_threads(threads_of(config.runtime.cpus_per_worker))
    device = default_device() if config.runtime.gpus_per_worker else torch.device("cpu")
    log_to_file(run_dir / "logs" / "rank_0.log")
    return run_rank(config, blocks, run_dir, Group(device=device), tell=tell)


def _on_several_workers(config: RunConfig, blocks: str, run_dir: Path, tell: Callable[[Event], None]) -> dict[str, Any]:
    return pretrain_on_ray(config, blocks, run_dir, _Listener(tell))


class _Listener(Display):
    """Hears what a nested run would show."""

    def __init__(self, tell: Callable[[Event], None]):
        super().__init__("off")
        self._tell = tell

    def handle(self, event: Event) -> None:
        self._tell(event)


def _teller(config: RunConfig, run_dir: Path, reporter: Reporter) -> Callable[[Event], None]:
    """From the loop's events to reports."""

    def tell(event: Event) -> None:
        if event["event"] == "evaluation":
            reporter.evaluated(event["step"], _measured(config, event))
        elif event["event"] == "checkpoint" and reporter.wants_checkpoint(event["step"]):
            reporter.checkpointed(event["step"], _committed(run_dir, event["step"]))

    return tell


def _measured(config: RunConfig, evaluation: Mapping[str, Any]) -> dict[str, float]:
    sparsity, dev = 0.0 if config.masks is None else config.masks.sparsity, evaluation["dev"]
    means = {"dev/mean": sum(dev.values()) / len(dev), "dev/target": evaluation["target"]}
    return {"sparsity": sparsity} | means | {f"dev/{name}": loss for name, loss in dev.items()}


def _committed(run_dir: Path, step: int) -> Path:
    """The checkpoint of `step`, once the thread that writes it is done."""
    path = Checkpoints(run_dir / "checkpoints").path(step)
    deadline = time.monotonic() + _COMMIT_TIMEOUT_S
    while not (path / COMMITTED).is_file():
        if time.monotonic() > deadline:
            raise UserError(f"checkpoint {path} was not written within {_COMMIT_TIMEOUT_S:.0f} s; is the disk full?")
        time.sleep(0.01)
    return path


def _open_run_dir(run_dir: Path, config: RunConfig) -> None:
    """The trial's folder: new, or that of an attempt that crashed, from whose checkpoint the loop goes on."""
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in ("checkpoints", "logs", "policies"):
        (run_dir / folder).mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(config.to_yaml())


def _take_over(run_dir: Path, config: RunConfig) -> None:
    """Put the checkpoint that Tune wants this trial to go on from (its own, or a better trial's) into its folder."""
    given = tune.get_checkpoint()
    if given is None:
        return
    checkpoints = Checkpoints(run_dir / "checkpoints")
    shutil.rmtree(checkpoints.folder)
    with given.as_directory() as source:
        step = json.loads((Path(source) / "state.json").read_text())["step"]
        shutil.copytree(source, checkpoints.path(step))
    checkpoint = checkpoints.load(step)
    state = {**checkpoint.state, "metrics_bytes": _keep_metrics_until(step, run_dir)}
    if not learns(config):
        # A mixture that nothing learns is a setting of this trial, which PBT may have changed, not of the donor's.
        arms = list(state["outer"]["policy"]["parts"][MIXTURE])
        policy = policy_state(first_policy(make_rules(config.meta.rules, arms)))
        state["outer"] = {**state["outer"], "policy": policy.values}
    checkpoints.save(step, state, checkpoint.tensors)
    checkpoints.wait()


def _keep_metrics_until(step: int, run_dir: Path) -> int:
    """Cut this trial's own metrics.jsonl back to `step`; its size in bytes."""
    path = run_dir / "metrics.jsonl"
    kept = "".join(json.dumps(line) + "\n" for line in read_metrics(run_dir) if line["step"] <= step)
    path.write_text(kept)
    return len(kept.encode())
