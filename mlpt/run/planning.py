"""`mlpt pretrain --dry-run`: what a run would do and cost, as far as that can be known before it. Writes nothing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from mlpt.config import RunConfig
from mlpt.data.manifest import Manifest, read_manifest
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.config import hugging_face_config
from mlpt.reporting.html.parts import duration, number
from mlpt.reporting.records import Record, read_run
from mlpt.reporting.run_list import find_runs
from mlpt.run.build import learns
from mlpt.storage.store import is_uri

_MIB = 2**20


def plan(config: RunConfig) -> list[str]:
    """Lines for people. Raises `UserError` for what the run itself would refuse before its first step."""
    manifest = _manifest(config)
    length = manifest.block_size if manifest is not None else config.data.block_size
    parameters = _parameters(config, manifest, length)
    return [
        *_about_data(config, manifest),
        *_about_steps(config, length),
        *_about_meta(config, length),
        *_about_memory(config, parameters),
        _about_time(config, length),
        f"the run would be in {config.run_dir or f'a new folder runs/{config.name}-DATE-TIME'}; nothing was written",
    ]


def _manifest(config: RunConfig) -> Manifest | None:
    """Of blocks that are there already."""
    places = [*(config.data.places if len(config.data.places) == 1 else []), *filter(None, [config.blocks])]
    return next((found for place in places if (found := read_manifest(place)) is not None), None)


def _about_data(config: RunConfig, manifest: Manifest | None) -> Iterator[str]:
    sources = ", ".join(config.data.places)
    if manifest is None:
        yield f"text: {sources}, prepared first unless it lies in the cache: blocks of {config.data.block_size} tokens"
        return
    rows = ", ".join(f"{split} {entry.rows:,}" for split, entry in manifest.splits.items())
    yield f"text: {sources}, prepared: blocks of {manifest.block_size} tokens: {rows}"


def _about_steps(config: RunConfig, length: int) -> Iterator[str]:
    train = config.train
    steps, step_tokens = train.total_steps(length), train.batch_size * length
    yield (
        f"training: {steps:,} steps of {train.batch_size} blocks ({train.micro_batches} micro-batches): "
        f"{step_tokens:,} tokens a step, {steps * step_tokens:,} in all, in {train.precision}"
    )
    workers = config.runtime.num_workers
    where = "in this process" if workers == 0 else f"{workers} Ray worker(s), address {config.runtime.address}"
    yield f"where: {where}"
    along = f", {steps // train.evaluate_every} along the way" if train.evaluate_every else ""
    saved = len({*range(train.checkpoint_every, steps + 1, train.checkpoint_every), steps})
    yield f"held-out evaluations: before and after{along}"
    yield f"checkpoints: {saved} are written, the last {train.keep} and the best are kept"


def _about_meta(config: RunConfig, length: int) -> Iterator[str]:
    names = ", ".join([*config.objectives, *config.tasks])
    if not learns(config):
        yield f"objectives: {names}; nothing about their mixture is learned"
        return
    meta, steps = config.meta, config.train.total_steps(length)
    updates = -(-steps // meta.interval)
    lag = "training waits for each" if meta.lag == 0 else f"each adopted {meta.lag} steps later"
    yield f"objectives: {names}; meta-learning: {updates:,} updates, one every {meta.interval} steps, {lag}"


def _parameters(config: RunConfig, manifest: Manifest | None, length: int) -> int | None:
    """Of the encoder with its language-modelling head; None where that is known only once its parts are loaded."""
    with torch.device("meta"):
        if config.model.pretrained is not None:
            named = Path(config.model.pretrained)
            folder = next((one for one in (named, named / "model") if (one / "config.json").is_file()), None)
            if folder is None:
                return None
            made: Any = AutoConfig.from_pretrained(folder)
        else:
            vocabulary = _vocabulary(config, manifest)
            if vocabulary is None:
                return None
            made = hugging_face_config(config.model, vocabulary, length)
        return int(AutoModelForMaskedLM.from_config(made).num_parameters())


def _vocabulary(config: RunConfig, manifest: Manifest | None) -> Vocabulary | None:
    if manifest is not None:
        return Vocabulary(**manifest.vocabulary)
    if config.data.vocab_size is None:
        return None  # of a tokenizer that is loaded
    return Vocabulary(config.data.vocab_size, pad=0, unk=1, cls=2, sep=3, mask=4)


def _about_memory(config: RunConfig, parameters: int | None) -> Iterator[str]:
    if parameters is None:
        yield "memory: not known before the model or its tokenizer is loaded"
        return
    held, saved = 16 * parameters, 12 * parameters  # float32 weights, gradients, two moments; without the gradients
    copies = config.train.keep + 1
    yield f"model: {parameters:,} parameters"
    yield (
        f"memory: {held / _MIB:,.0f} MiB in each worker for weights, gradients and AdamW's moments; activations, the "
        "objectives' heads and the libraries come on top"
    )
    yield f"disk: {saved / _MIB:,.0f} MiB for a checkpoint, {copies * saved / _MIB:,.0f} MiB for all that are kept"


def _about_time(config: RunConfig, length: int) -> str:
    """From an earlier run that did the same work a step; a guess is worth nothing."""
    tokens = config.train.total_steps(length) * config.train.batch_size * length
    for record in _earlier(config):
        if record.tokens and record.seconds and _same_work(record, config):
            rate = record.tokens / record.seconds
            paced = f"{number(rate)} tokens/s of {record.place}, whose steps do the same"
            return f"time: about {duration(tokens / rate)} at the {paced}"
    return "time: not known; no run beside this one does the same work in a step (its first lines will tell)"


def _earlier(config: RunConfig) -> Iterator[Record]:
    """Runs in the folder where this one would lie, the newest first."""
    if config.run_dir is not None and is_uri(config.run_dir):
        return
    folder = Path("runs") if config.run_dir is None else Path(config.run_dir).expanduser().parent
    with contextlib.suppress(UserError, OSError):
        for place in sorted(find_runs(str(folder)), key=lambda one: -Path(one, "config.yaml").stat().st_mtime):
            yield read_run(place)


def _same_work(record: Record, config: RunConfig) -> bool:
    mine = config.model_dump(mode="json")
    theirs = record.config
    alike = ("batch_size", "micro_batch_size", "precision", "compile", "draw")
    try:
        return (
            all(theirs[key] == mine[key] for key in ("model", "objectives", "masks", "meta"))
            and list(theirs.get("tasks", ())) == mine["tasks"]
            and all(theirs["train"][key] == mine["train"][key] for key in alike)
            and theirs["data"]["block_size"] == mine["data"]["block_size"]
            and theirs["runtime"]["num_workers"] == mine["runtime"]["num_workers"]
        )
    except (KeyError, TypeError):
        return False
