"""From a recipe to a finished run: the steps behind `mlpt pretrain`, and the function to call from Python.

from mlpt.launch import pretrain
run = pretrain("quickstart", {"train": {"steps": 200}})
print(run.summary["held_out"], run.folder / "model")
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mlpt.config import RunConfig, load_run_config
from mlpt.errors import UserError
from mlpt.job import mixture_rule, run_rank
from mlpt.logs import log_to_file
from mlpt.prepared import blocks_of
from mlpt.reporting.display import Display
from mlpt.reporting.summary import print_summary
from mlpt.rundir import RunDir, new_run_dir, open_run
from mlpt.saved import with_model_of_run
from mlpt.settings import load_settings, merge
from mlpt.training.group import Group, default_device
from mlpt.training.mirror import fetch_log, send_log


@dataclass(frozen=True)
class Run:
    """A finished run: its folder (the model is in `folder`/model) and its summary (plain JSON values).

    folder  where it lies on this machine; of a run at a URI the working folder.
    name    its URI if it has one, else the folder.
    """

    folder: Path
    summary: dict[str, Any]
    name: str


def pretrain(
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    debug: bool = False,
) -> Run:
    """Pretrain by a recipe (a packaged name or a YAML file; None: quickstart) with `settings` laid on it.

    resume   the folder or URI of a run to go on with, from its last whole checkpoint; then only `runtime` and `report`
             may be set anew, because they change where and not what is computed.
    console  where progress and the summary go; None: standard error.
    Raises `UserError` in one line for anything that the caller can put right.
    """
    console = console or Console(stderr=True)
    if resume is not None:
        run, config = _resumed(resume, recipe, settings or {})
    else:
        config = load_run_config(recipe, dict(settings or {}))
        config = with_model_of_run(config, lambda text: console.print(text, highlight=False, markup=False))
        mixture_rule(config)  # a rule that doesn't fit the objectives is refused before anything is prepared
        run = new_run_dir(config)
    with Display(config.report.progress, console) as display:
        display.say(f"run: {run.name}")
        if run.remote is not None:
            display.say(f"working folder on this machine: {run.folder}")
            shutil.rmtree(run.folder / "model", ignore_errors=True)  # another machine may make the next one
        train = _in_this_process if config.runtime.num_workers == 0 else _on_ray
        summary = train(config, run, display, debug)
    summary["first_mixture"] = mixture_rule(config).first_mixture()
    (run.folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print_summary(summary, run.name, console)
    run.send("summary.json")
    run.fetch_model()
    return Run(run.folder, summary, run.name)


def _resumed(
    resume: str | os.PathLike[str], recipe: str | None, settings: Mapping[str, Any]
) -> tuple[RunDir, RunConfig]:
    if recipe is not None or settings.keys() - {"runtime", "report"}:
        raise UserError("--resume takes the run's own configuration; only runtime.* and report.* may be set anew")
    run, config = open_run(resume)
    return run, load_settings(RunConfig, merge(config.model_dump(), settings))


def _in_this_process(config: RunConfig, run: RunDir, display: Display, debug: bool) -> dict[str, Any]:
    """The run without Ray, for a debugger: one rank, and the in-process twin of the meta-learner's actor."""
    blocks = blocks_of(config, run.folder, display)
    run.send("blocks.json")
    log = run.folder / "logs" / "rank_0.log"
    fetch_log(run.remote, log)
    log_to_file(log)
    try:
        group = Group(device=default_device())
        return run_rank(config, blocks, run.folder, group, tell=display.handle, remote=run.remote)
    finally:
        send_log(run.remote, log)


def _on_ray(config: RunConfig, run: RunDir, display: Display, debug: bool) -> dict[str, Any]:
    """The run on Ray, which is needed from here on only: on this machine or on a cluster."""
    from mlpt.runtime.ingest import blocks_on_cluster
    from mlpt.runtime.pretrain import pretrain_on_ray

    if config.runtime.address == "local":
        blocks = blocks_of(config, run.folder, display)
    else:
        blocks = blocks_on_cluster(config, run.folder, display, debug)
    run.send("blocks.json")
    return pretrain_on_ray(config, blocks, run.folder, display, debug, run.remote)
