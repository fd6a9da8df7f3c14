"""`mlpt.pretrain`: the command of that name as a function, with callbacks."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mlpt.api.speaking import console_of
from mlpt.config import RunConfig
from mlpt.outputs import StrPath
from mlpt.reporting.text import say
from mlpt.run.callbacks import Callback, Listeners
from mlpt.run.launch import pretrain as launch
from mlpt.run.result import Run, load_run
from mlpt.settings import merge, nested
from mlpt.stopping import Stopped


def pretrain(
    recipe: StrPath | Mapping[str, Any] | RunConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    callbacks: Callback | Sequence[Callback] = (),
    resume: StrPath | None = None,
    restart: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    debug: bool = False,
    **more: Any,
) -> Run:
    """Pretrain an encoder while its mixture of objectives is learned.

    recipe     a packaged recipe, a YAML file, a mapping of settings, or the `config` of another run; None: quickstart.
    settings   laid on the recipe: nested mappings or dotted keys, `{"train.steps": 200}`; `more` likewise, by section:
               `train={"steps": 200}`.
    callbacks  one or several that hear of each step, evaluation and policy, and may ask for a checkpoint or the end.
    resume     a run to go on with, instead of a recipe. restart: from step 0.
    overwrite  replace an earlier run in `run_dir`.
    quiet      show no progress and no summary.

    Returns the run: finished, or stopped with a checkpoint where a callback asked for that (`run.state`). Raises
    `UserError` for what the caller can put right, `Stopped` (a KeyboardInterrupt) after Ctrl-C, and what a callback
    raised; in the latter cases everything is saved, and `resume` goes on.
    """
    given = merge(nested(settings or {}), nested(more))
    listeners = Listeners([callbacks] if isinstance(callbacks, Callback) else callbacks)
    console = console_of(quiet)
    try:
        run = launch(
            _values(recipe),
            given,
            resume=resume,
            restart=restart,
            overwrite=overwrite,
            console=console,
            debug=debug,
            listeners=listeners,
        )
    except Stopped as stopped:
        if not listeners.has_stopped or listeners.run is None:
            raise
        if listeners.error is not None:
            listeners.error.add_note(str(stopped))
            raise listeners.error from None
        say(str(stopped), console)
        return load_run(listeners.run)
    if listeners.error is not None:
        raise listeners.error
    return run


def _values(recipe: StrPath | Mapping[str, Any] | RunConfig | None) -> str | Mapping[str, Any] | None:
    if isinstance(recipe, RunConfig):  # what another run resolved; its folder is not this one's
        values: dict[str, Any] = yaml.safe_load(recipe.model_copy(update={"run_dir": None}).to_yaml())
        return values
    return recipe if recipe is None or isinstance(recipe, str | Mapping) else os.fspath(recipe)
