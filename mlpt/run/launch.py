"""From a recipe to a finished run: the steps behind `mlpt pretrain` and `mlpt.pretrain`."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich.console import Console

from mlpt.config import RunConfig, load_run_config
from mlpt.errors import UserError, system_error, told
from mlpt.logs import Event, logging_to_file
from mlpt.outputs import forget_replaced, write_file
from mlpt.reporting.boards import check_boards
from mlpt.reporting.display import Display
from mlpt.reporting.summary import print_summary
from mlpt.reporting.text import plain_console, say
from mlpt.run.blocks import blocks_of, with_target_texts
from mlpt.run.build import run_rank, threads_of
from mlpt.run.callbacks import Listeners
from mlpt.run.folder import RunDir, new_run, open_run
from mlpt.run.judged import check_judges
from mlpt.run.local_paths import with_absolute_paths
from mlpt.run.result import Run
from mlpt.run.resuming import SUMMARY, begin_again, newest_step, say_what_changes, summary_of, with_settings
from mlpt.run.saved import with_model_of_run
from mlpt.run.writing_up import say_report, written_up
from mlpt.settings import nested
from mlpt.stopping import RunStopped, Stopped, StopRequest
from mlpt.storage.checkpoint import Checkpoints
from mlpt.storage.mirror import fetch_log, send_log
from mlpt.training.group import Group, default_device

_log = logging.getLogger(__name__)


def pretrain(
    recipe: str | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    restart: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    debug: bool = False,
    listeners: Listeners | None = None,
) -> Run:
    """Pretrain by a recipe (a packaged name, a YAML file or its values; None: quickstart) with `settings` laid on it.

    resume     the folder or URI of a run to go on with, from its last whole checkpoint; a finished one is shown again.
               What may be set anew is where it runs, and what counts from here on: its length, and what rescues a run
               that has diverged (`mlpt.run.resuming`).
    restart    begin the run of `resume` again, at step 0; what it has made goes.
    overwrite  replace an earlier run in `run_dir`.
    console    where progress and the summary go; None: standard error.
    listeners      hears of the run while it trains, and may ask it to stop.
    Raises `UserError` in one line for anything that the caller can put right, and `Stopped`, a KeyboardInterrupt, once
    a SIGINT or SIGTERM has ended the run, everything saved.
    """
    console, listeners = console or plain_console(stderr=True), listeners or Listeners()
    if resume is None:
        if restart:
            raise UserError("--restart begins the run that --resume names again; name it: --resume RUN --restart")
        config = load_run_config(recipe, settings or {})
        config = with_absolute_paths(with_model_of_run(config, lambda text: say(text, console)))
        with new_run(config, overwrite) as run:
            return _run(config, run, console, debug, listeners)
    if recipe is not None:
        raise UserError(f"--resume takes the run's own configuration; leave out '{recipe}'")
    if overwrite:
        raise UserError("--resume goes on with a run and --overwrite replaces one; give one of them")
    run, before = open_run(resume)
    config = with_settings(run, before, nested(settings or {}))
    finished = None if restart else summary_of(run, config)
    if finished is not None:
        say("the run is finished; with train.steps=N it goes on to N steps", console)
        print_summary(finished, run.name, console)
        run.fetch_model()
        say_report(run, console)
        return Run(run.folder, finished, run.name)
    with run.alone():
        step = newest_step(run, config, restart)
        if restart:
            run = begin_again(run)
        say_what_changes(run, before, config, step, lambda text: say(text, console))
        return _run(config, run, console, debug, listeners, step)


def _run(config: RunConfig, run: RunDir, console: Console, debug: bool, listeners: Listeners, step: int = 0) -> Run:
    """Train to the end, from the checkpoint of `step` (0: from the start), and show the summary."""
    check_boards(config.report)
    check_judges(config)
    with _told_how_to_go_on(run), written_up(run, step, config.report.html, console):
        display = Display(config.report.progress, console, listeners.tell)
        with display, _stopped_with_advice(run, step, display) as stop:
            display.say(f"run: {run.name}")
            if run.remote is not None:
                display.say(f"working folder on this machine: {run.folder}")
                shutil.rmtree(run.folder / "model", ignore_errors=True)  # another machine may make the next one
            alone = config.runtime.num_workers == 0
            listeners.begin(run.name, stop, in_process=alone)
            train = partial(_in_this_process, must_save=listeners.must_save) if alone else _on_ray
            summary = train(config, run, display, debug, stop)
        write_file(run.folder / SUMMARY, json.dumps(summary, indent=1).encode())
        print_summary(summary, run.name, console)
        run.send(SUMMARY)
        run.fetch_model()
        forget_replaced(run.folder)
    return Run(run.folder, summary, run.name)


@contextmanager
def _told_how_to_go_on(run: RunDir) -> Iterator[None]:
    """Errors of the system become one line: with the command that goes on, if there is something to go on with."""
    try:
        yield
    except Exception as error:
        trouble = system_error(error)
        if trouble is None or isinstance(error, UserError):
            raise
        raise UserError(told(trouble, run.way_on())) from error


@contextmanager
def _stopped_with_advice(run: RunDir, step: int, display: Display) -> Iterator[StopRequest]:
    """Heed signals while the block lasts; a run that they end says where it stands and how to go on.

    step  of the newest checkpoint at the start, 0 without one.
    """
    stop = StopRequest(display.say)
    try:
        with stop.listening():
            yield stop
    except RunStopped as stopped:
        step = stopped.step
    except Stopped:
        step = max([step, *Checkpoints(run.folder / "checkpoints").steps()])  # training may be over
    else:
        return
    where = f"after step {step:,}" if step else "before its first checkpoint"
    raise Stopped(stop.number, f"{stop.name} has stopped the run {where}; go on by {run.way_on()}")


def _in_this_process(
    config: RunConfig,
    run: RunDir,
    display: Display,
    debug: bool,
    stop: StopRequest,
    must_save: Callable[[int], bool],
) -> dict[str, Any]:
    """The run without Ray, for a debugger: one rank, and the in-process twin of the meta-learner's actor."""
    blocks = blocks_of(config, run.folder, display)
    config = with_target_texts(config, blocks, display)
    run.send("blocks.json")
    log = run.folder / "logs" / "rank_0.log"
    fetch_log(run.remote, log)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_of(config.runtime.cpus_per_worker))  # as a worker's: sums depend on their number
    display.doing("building the model")

    def tell(event: Event) -> None:
        _log.info("%s", json.dumps(event))  # as a worker does: reports read its warnings there
        display.handle(event)

    try:
        group = Group(device=default_device())
        with logging_to_file(log), stop.training():
            return run_rank(
                config,
                blocks,
                run.folder,
                group,
                tell=tell,
                must_save=must_save,
                should_stop=stop,
                remote=run.remote,
            )
    finally:
        torch.set_num_threads(threads)
        send_log(run.remote, log)


def _on_ray(config: RunConfig, run: RunDir, display: Display, debug: bool, stop: StopRequest) -> dict[str, Any]:
    """The run on Ray, which is needed from here on only: on this machine or on a cluster."""
    from mlpt.runtime.ingest import blocks_on_cluster
    from mlpt.runtime.pretrain import pretrain_on_ray

    if config.runtime.address == "local":
        blocks = blocks_of(config, run.folder, display)
    else:
        blocks = blocks_on_cluster(config, run.folder, display, debug)
    config = with_target_texts(config, blocks, display)
    run.send("blocks.json")
    return pretrain_on_ray(config, blocks, run.folder, display, debug, run.remote, stop)
