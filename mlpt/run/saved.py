"""What people name as MODEL: a run, finished or not, one of its checkpoints, a Hugging Face folder or a hub name.

`RUN` is its final model, or its last whole checkpoint while it has none; `RUN@best`, `RUN@last` and `RUN@step=500` are
its checkpoints. A checkpoint holds tensors, not a model's folder: that is made from it once, in RUN/models.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from mlpt.config import RunConfig
from mlpt.data.sources import Sources
from mlpt.errors import UserError, resume_command
from mlpt.models.hooks import all_as_saved
from mlpt.outputs import expanded, read_json
from mlpt.run.build import build_model, step_hooks
from mlpt.run.folder import BLOCKS, CONFIG, open_run, remembered_blocks
from mlpt.sparsity.config import save_final_masks
from mlpt.storage.checkpoint import Checkpoint, Checkpoints
from mlpt.storage.store import is_uri
from mlpt.training.state import load_model_tensors

MADE_FROM = "checkpoint.json"  # in a folder of RUN/models: the mark of the checkpoint it was made from
_WHICH = re.compile(r"(.+)@(best|last|step=(\d+))")
Say = Callable[[str], None]


def resolve_model(name: str, say: Say = lambda text: None) -> str:
    """The folder of the model that `name` means; a hub name, or a path that isn't there, as it is.

    say  is told which checkpoint stands for a run that isn't finished.
    Raises `UserError` for a URI, and where the run has no such checkpoint.
    """
    if not name.strip():
        raise UserError("a model needs a name: a run, a folder or a hub name; an empty one was given")
    if is_uri(name):
        raise UserError(
            f"{name} is a URI, and models are loaded from folders; copy {name.rstrip('/')}/model here first"
        )
    asked = None if Path(name).exists() else _WHICH.fullmatch(name)
    run = expanded(asked[1] if asked else name)
    if asked is not None:
        return _from_checkpoint(run, _step(run, asked), lambda text: None)
    if (run / "model" / "config.json").is_file():
        return os.fspath(run / "model")
    if (run / CONFIG).is_file() and not (run / "config.json").is_file():
        return _from_checkpoint(run, None, say)
    return os.fspath(run) if run.exists() else name


def with_model_of_run(config: RunConfig, say: Say = lambda text: None) -> RunConfig:
    """`config` with `model.pretrained`, and a tokenizer of that name, resolved: what is written down is what ran."""
    named = config.model.pretrained
    if named is None:
        return config
    folder = resolve_model(named, say)
    data = config.data.model_copy(update={"tokenizer": folder}) if config.data.tokenizer == named else config.data
    model = config.model.model_copy(update={"pretrained": folder})
    return config.model_copy(update={"model": model, "data": data})


def blocks_of_run(name: str) -> str:
    """The prepared blocks of the run that `name` means. Raises `UserError` where it is no run, or names none."""
    asked = None if Path(name).exists() else _WHICH.fullmatch(name)
    return _blocks_of(expanded(asked[1] if asked else name))


def _step(run: Path, asked: re.Match[str]) -> int | None:
    """The step that the words after the @ ask for; None: the last one."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is no run, so {asked[0]} names no checkpoint; give a run's folder before the @")
    checkpoints = Checkpoints(run / "checkpoints")
    steps = checkpoints.steps()
    there = f"it has those of steps {', '.join(map(str, steps))}" if steps else "it has none"
    if asked[2] == "best":
        best = checkpoints.best()
        if best not in steps:
            hint = "evaluate along the way with train.evaluate_every=N"
            raise UserError(f"{run} has no checkpoint that is known to be the best: {there}; {hint}")
        return best
    if asked[3] is None:
        return None
    if int(asked[3]) not in steps:
        raise UserError(f"{run} has no checkpoint of step {asked[3]}: {there}")
    return int(asked[3])


def _from_checkpoint(run: Path, step: int | None, say: Say) -> str:
    """A Hugging Face folder made of a checkpoint (None: the last whole one), or found where it was made before."""
    checkpoints = Checkpoints(run / "checkpoints")
    chosen = checkpoints.latest(say) if step is None else checkpoints.load(step)
    if chosen is None:
        raise UserError(
            f"{run} has no model yet: it is not finished and has no checkpoint; begin it again by "
            f"`{resume_command(str(run), '--restart')}`"
        )
    say(f"{run} is not finished: taking its checkpoint of step {chosen.step}")
    folder = run / "models" / chosen.path.name
    made_from = folder / MADE_FROM
    if not (made_from.is_file() and read_json(made_from).get("mark") == chosen.mark):
        _write(run, chosen, folder)
    return os.fspath(folder)


def _write(run: Path, checkpoint: Checkpoint, folder: Path) -> None:
    """The folder that the run would have left had it ended at `checkpoint`; whole or not at all."""
    config = open_run(run)[1]
    if not (run / BLOCKS).is_file():
        raise UserError(f"{run} does not say which blocks it trains on, where its tokenizer is; resume it first")
    sources = Sources.open(_blocks_of(run))  # what the target looks at makes no part of a model
    model = build_model(config, sources)
    hooks = step_hooks(config, model, sources, None)  # before the tensors, as in a run that is resumed
    load_model_tensors(model, checkpoint.tensors["model"])
    partial = None
    try:
        folder.parent.mkdir(exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        if config.masks is not None:
            with all_as_saved(hooks, model):  # a checkpoint holds the scores and thresholds that train
                save_final_masks(config.masks, model, partial, checkpoint.step, config.seed)
        model.save(partial, sources.train.tokenizer())
        (partial / MADE_FROM).write_text(json.dumps({"step": checkpoint.step, "mark": checkpoint.mark}))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        raise UserError(
            f"cannot make {folder} ({error.strerror or error}); copy the run to where you may write"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _blocks_of(run: Path) -> str:
    remembered = remembered_blocks(run)
    if remembered is None:
        raise UserError(f"{run} is no run that remembers its text; name prepared blocks: --blocks FOLDER")
    return remembered["blocks"]
