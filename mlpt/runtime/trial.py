"""One trial of a sweep: the ordinary run of one point with one seed, which reports to Tune after each evaluation.

Small models train in Tune's own process, which is reused from trial to trial; several workers make it a nested run.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from mlpt.config import RunConfig, load_run_config
from mlpt.errors import UserError
from mlpt.job import learns, mixture_rule, run_rank
from mlpt.logs import log_to_file
from mlpt.meta.policy import Policy
from mlpt.reporting.display import Display
from mlpt.runtime.pretrain import pretrain_on_ray
from mlpt.runtime.searching import PAUSING
from mlpt.runtime.space import Space
from mlpt.settings import merge, nested
from mlpt.training.checkpoint import COMMITTED, Checkpoints
from mlpt.training.group import Group, default_device
from mlpt.training.tracker import read_metrics

WORST = 1e6  # stands in for the metrics of a trial that failed; Tune and Optuna cannot rank NaN
FINISHED = "finished.json"  # a trial's last report
_COMMIT_TIMEOUT_S = 300.0

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep share; it travels through the object store once.

    overrides   nested settings over the space's recipe and base: the user's.
    blocks      the prepared folder, which every trial maps into its memory.
    folder      the sweep's folder.
    block_size  tokens in a block.
    resources   what Ray Tune reserves for a trial.
    is_nested   trials are runs of their own on several Ray Train workers; else they train in Tune's process.
    """

    space: Space
    overrides: dict[str, Any]
    blocks: str
    folder: Path
    block_size: int
    resources: dict[str, float]
    is_nested: bool

    @property
    def pausing(self) -> bool:
        """True when the scheduler pauses trials, so that Tune must be given checkpoints."""
        return self.space.scheduler in PAUSING


def trial_config(space: Space, overrides: dict[str, Any], point: Mapping[str, Any], seed: int) -> RunConfig:
    """The configuration of one trial, without its budget. The point wins over the user, the user over the base."""
    shared = merge(nested(space.base), overrides)
    chosen = merge(shared, nested(space.settings(point)))
    return load_run_config(space.recipe, merge({"runtime": {"num_workers": 1}}, merge(chosen, {"seed": seed})))


def budgeted(config: RunConfig, space: Space, block_size: int, pausing: bool) -> RunConfig:
    """`config` with the space's budget, cut into `evaluations` equal parts, each ended by a meta-dev evaluation.

    Pausing schedulers want a checkpoint at every evaluation, which the loop makes at multiples of `meta.interval`.
    """
    unit = config.meta.interval if pausing and learns(config) else 1
    part = space.tokens / (config.train.batch_size * block_size * space.evaluations)
    every = unit * max(1, math.ceil(part / unit))
    steps = every * space.evaluations
    changes = {
        "tokens": None,
        "steps": steps,
        "evaluate_every": every,
        "checkpoint_every": every if pausing else max(every, steps // 3),
        "keep": 1,
    }
    report = config.report.model_copy(update={"tensorboard": False, "progress": "off"})
    return config.model_copy(update={"train": config.train.model_copy(update=changes), "report": report})


def check_metrics(space: Space, config: RunConfig) -> None:
    """Raise `UserError` for a metric that no trial of `config` would report: Tune would wait for it."""
    known = {"dev/mean", "sparsity", *(f"dev/{name}" for name in config.objectives)}
    for metric in space.metrics:
        if metric not in known:
            raise UserError(f"space '{space.name}': no trial reports '{metric}'; there are {', '.join(sorted(known))}")


def run_trial(config: dict[str, Any], plan: Plan) -> None:
    """Tune's trainable. `config` holds the `point` and the `seed`.

    A run that cannot succeed (`UserError`) is reported with the worst metrics and its reason; crashes Tune retries.
    """
    begun = time.perf_counter()
    run_dir = plan.folder / "trials" / tune.get_context().get_trial_id()
    if (run_dir / FINISHED).is_file():  # it ended just before the sweep was killed, and Tune never wrote that down
        tune.report(json.loads((run_dir / FINISHED).read_text()))
        return
    try:
        resolved = trial_config(plan.space, plan.overrides, config["point"], config["seed"])
        resolved = budgeted(resolved, plan.space, plan.block_size, plan.pausing)
        _open_run_dir(run_dir, resolved)
        _take_over(run_dir, resolved)
        reporter = Reporter(plan, resolved, run_dir, begun)
        train = _on_several_workers if plan.is_nested else _in_this_process
        summary = train(resolved, plan.blocks, run_dir, reporter.tell)
    except UserError as error:
        worst = {name: WORST if mode == "min" else -WORST for name, mode in plan.space.metrics.items()}
        spent = {"tokens": 0, "evaluations": 0, "seconds": time.perf_counter() - begun, "run_dir": str(run_dir)}
        tune.report({**worst, **spent, "error": str(error)})
        return
    reporter.finish(summary)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)


def _in_this_process(config: RunConfig, blocks: str, run_dir: Path, tell: Callable[[Event], None]) -> dict[str, Any]:
    torch.set_num_threads(max(1, int(config.runtime.cpus_per_worker)))
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


class Reporter:
    """Turns the loop's events into reports to Tune: one after each evaluation, the last with the test losses."""

    def __init__(self, plan: Plan, config: RunConfig, run_dir: Path, begun: float):
        self._pausing = plan.pausing
        self._config = config
        self._tokens_per_step = config.train.batch_size * plan.block_size
        self._run_dir = run_dir
        self._begun = begun
        self._latest: dict[str, Any] = {}

    def tell(self, event: Event) -> None:
        """Hear one event of the loop. The evaluation of the last step waits for `finish`."""
        at_end = event.get("step") == self._config.train.steps
        if event["event"] == "evaluation":
            self._latest = self._measured(event["step"], event["dev"])
            if not self._pausing and not at_end:
                tune.report(self._latest)
        elif (
            self._pausing
            and event["event"] == "checkpoint"
            and event["step"] == self._latest.get("step")
            and not at_end
        ):
            tune.report(self._latest, checkpoint=tune.Checkpoint.from_directory(self._committed(event["step"])))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Report the end of the run."""
        held_out = {f"held_out/{name}": loss for name, loss in summary["held_out"].items()}
        self._latest |= {"seconds": time.perf_counter() - self._begun}
        last = {**self._latest, **held_out, "tokens_per_second": summary["tokens_per_second"]}
        (self._run_dir / FINISHED).write_text(json.dumps(last))
        tune.report(last)

    def _measured(self, step: int, dev: Mapping[str, float]) -> dict[str, Any]:
        return {
            "step": step,
            "tokens": step * self._tokens_per_step,
            "budget": self._config.train.steps * self._tokens_per_step,
            "evaluations": step // self._config.train.evaluate_every,
            "seconds": time.perf_counter() - self._begun,
            "run_dir": str(self._run_dir),
            "sparsity": 0.0 if self._config.masks is None else self._config.masks.sparsity,
            "dev/mean": sum(dev.values()) / len(dev),
            **{f"dev/{name}": loss for name, loss in dev.items()},
        }

    def _committed(self, step: int) -> str:
        """The checkpoint of `step`, once the thread that writes it is done."""
        path = Checkpoints(self._run_dir / "checkpoints").path(step)
        deadline = time.monotonic() + _COMMIT_TIMEOUT_S
        while not (path / COMMITTED).is_file():
            if time.monotonic() > deadline:
                raise UserError(
                    f"checkpoint {path} was not written within {_COMMIT_TIMEOUT_S:.0f} s; is the disk full?"
                )
            time.sleep(0.01)
        return str(path)


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
        policy = Policy(0, mixture_rule(config).first_mixture())
        state["outer"] = {**state["outer"], "policy": policy.to_json()}
    checkpoints.save(step, state, checkpoint.tensors)
    checkpoints.wait()


def _keep_metrics_until(step: int, run_dir: Path) -> int:
    """Cut this trial's own metrics.jsonl back to `step`; its size in bytes."""
    path = run_dir / "metrics.jsonl"
    kept = "".join(json.dumps(line) + "\n" for line in read_metrics(run_dir) if line["step"] <= step)
    path.write_text(kept)
    return len(kept.encode())
