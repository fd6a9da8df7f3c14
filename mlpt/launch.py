"""From a recipe to a finished run: the steps behind `mlpt pretrain`, and the function to call from Python.

from mlpt.launch import pretrain
run = pretrain("quickstart", {"train": {"steps": 200}})
print(run.summary["held_out"], run.folder / "model")
"""

import json
import os
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
from mlpt.rundir import new_run_dir, open_run
from mlpt.settings import load_settings, merge
from mlpt.training.group import Group, default_device


@dataclass(frozen=True)
class Run:
    """A finished run: its folder (the model is in `folder`/model) and its summary (plain JSON values)."""

    folder: Path
    summary: dict[str, Any]


def pretrain(
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    debug: bool = False,
) -> Run:
    """Pretrain by a recipe (a packaged name or a YAML file; None: quickstart) with `settings` laid on it.

    resume   the folder of a run to go on with, from its last whole checkpoint; then only `runtime` and `report` may be
             set anew, because they change where and not what is computed.
    console  where progress and the summary go; None: standard error.
    Raises `UserError` in one line for anything that the caller can put right.
    """
    console = console or Console(stderr=True)
    if resume is not None:
        folder, config = _resumed(resume, recipe, settings or {})
    else:
        config = load_run_config(recipe, dict(settings or {}))
        mixture_rule(config)  # a rule that doesn't fit the objectives is refused before anything is prepared
        folder = new_run_dir(config)
    with Display(config.report.progress, console) as display:
        display.say(f"run: {folder}")
        if config.runtime.num_workers == 0:
            summary = _in_this_process(config, blocks_of(config, folder, display), folder, display)
        else:
            from mlpt.runtime.ingest import blocks_on_cluster  # Ray is needed from here on only
            from mlpt.runtime.pretrain import pretrain_on_ray

            on_cluster = config.runtime.address != "local"
            blocks = (
                blocks_on_cluster(config, folder, display, debug) if on_cluster else blocks_of(config, folder, display)
            )
            summary = pretrain_on_ray(config, blocks, folder, display, debug)
    summary["first_mixture"] = mixture_rule(config).first_mixture()
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print_summary(summary, folder, console)
    return Run(folder, summary)


def _resumed(resume: str | os.PathLike[str], recipe: str | None, settings: Mapping[str, Any]) -> tuple[Path, RunConfig]:
    if recipe is not None or settings.keys() - {"runtime", "report"}:
        raise UserError("--resume takes the run's own configuration; only runtime.* and report.* may be set anew")
    folder, config = open_run(resume)
    return folder, load_settings(RunConfig, merge(config.model_dump(), settings))


def _in_this_process(config: RunConfig, blocks: str, folder: Path, display: Display) -> dict[str, Any]:
    """The run without Ray, for a debugger: one rank, and the in-process twin of the meta-learner's actor."""
    log_to_file(folder / "logs" / "rank_0.log")
    return run_rank(config, blocks, folder, Group(device=default_device()), tell=display.handle)
