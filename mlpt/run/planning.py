"""`mlpt pretrain --dry-run`: what a run would do and cost, as far as that can be known before it. Writes nothing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM

from mlpt.arms import arms_of
from mlpt.config import RunConfig
from mlpt.data.manifest import Manifest, read_manifest
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.meta.rules import rule_class
from mlpt.models.config import fitting_options, hugging_face_config
from mlpt.models.sharded import layers_of
from mlpt.outputs import expanded
from mlpt.reporting.html.parts import duration, number
from mlpt.reporting.records import Record, read_run
from mlpt.reporting.run_list import find_runs
from mlpt.run.build import learns
from mlpt.run.judged import check_judges
from mlpt.storage.store import is_uri
from mlpt.training.scaling import FLOAT, Workload
from mlpt.training.speed import flops_per_token, matmul_flops

_MIB = 2**20
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def plan(config: RunConfig) -> list[str]:
    """Lines for people. Raises `UserError` for what the run itself would refuse before its first step."""
    check_judges(config)
    manifest = _manifest(config)
    length = manifest.block_size if manifest is not None else config.data.block_size
    model = _model(config, manifest, length)
    workload = None if model is None else _workload(config, manifest, model, length)
    return [
        *_about_data(config, manifest),
        *_about_steps(config, length),
        *_about_meta(config, length),
        *_about_memory(config, workload),
        *_about_traffic(config, workload),
        _about_time(config, length, workload),
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
    saved = -(-steps // train.checkpoint_every)  # the last step's, too
    yield f"held-out evaluations: before and after{along}"
    yield f"checkpoints: {saved:,} are written, the last {train.keep} and the best are kept"


def _about_meta(config: RunConfig, length: int) -> Iterator[str]:
    names = ", ".join([*config.objectives, *config.tasks])
    if not learns(config):
        yield f"objectives: {names}; nothing about their mixture is learned"
        return
    meta, steps = config.meta, config.train.total_steps(length)
    updates = -(-steps // meta.interval)
    lag = "training waits for each" if meta.lag == 0 else f"each adopted {meta.lag} steps later"
    among = f", look-aheads shared out among {meta.replicas} learners" if meta.replicas > 1 else ""
    yield f"objectives: {names}; meta-learning: {updates:,} updates, one every {meta.interval} steps, {lag}{among}"


def _model(config: RunConfig, manifest: Manifest | None, length: int) -> Any:
    """The encoder with its language-modelling head, without memory; None where it is known only once its parts are
    loaded."""
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
        with fitting_options(config.model):
            return AutoModelForMaskedLM.from_config(made)


def _workload(config: RunConfig, manifest: Manifest | None, model: Any, length: int) -> Workload:
    """What the run does in a step, for the cost model."""
    train, workers = config.train, config.runtime.most_workers
    shares = train.parallel == "fsdp" and workers > 1
    layers = nn.ModuleList(layers_of(model)).parameters() if shares else ()
    looks_ahead = any(rule_class(part, settings.rule).needs_moments for part, settings in config.meta.rules.items())
    keeps, arms = config.meta.keeps_gradients, _arms(config, manifest)
    return Workload(
        parameters=int(model.num_parameters()),
        step_tokens=train.batch_size * length,
        flops_per_token=flops_per_token(model.base_model, model.config, length),
        interval=config.meta.interval if learns(config) else None,
        snapshot_tensors=(3 if looks_ahead else 1) + (1 + arms if keeps else 0),
        arm_gradients=arms * config.meta.lookahead.averaged_steps if keeps else 0,
        gradient_bytes=2 if train.compress_gradients else FLOAT,
        sharded=sum(one.numel() for one in layers),
        passes=max(1, train.micro_batches // workers),
        checkpoint_every=train.checkpoint_every,
    )


def _arms(config: RunConfig, manifest: Manifest | None) -> int:
    """How many arms train, as far as the domains of the text are known."""
    domains = list(config.data.sources or (manifest.splits["train"].domains if manifest is not None else ()))
    mix = config.data.mix if domains else None
    return len(arms_of(list(config.objectives), domains, mix, texts=False, tasks=config.tasks).trained)


def _vocabulary(config: RunConfig, manifest: Manifest | None) -> Vocabulary | None:
    if manifest is not None:
        return Vocabulary(**manifest.vocabulary)
    if config.data.vocab_size is None:
        return None  # of a tokenizer that is loaded
    return Vocabulary(config.data.vocab_size, pad=0, unk=1, cls=2, sep=3, mask=4)


def _about_memory(config: RunConfig, workload: Workload | None) -> Iterator[str]:
    if workload is None:
        yield "memory: not known before the model or its tokenizer is loaded"
        return
    workers = config.runtime.most_workers
    held, saved, copies = workload.held(workers), workload.checkpoint, config.train.keep + 1
    parts = f" (1/{workers} of the layers', all of the rest)" if workload.sharded else ""
    yield f"model: {workload.parameters:,} parameters"
    yield (
        f"memory: {held / _MIB:,.0f} MiB in each worker for weights, gradients and AdamW's moments{parts}; "
        "activations, the objectives' heads and the libraries come on top"
    )
    yield f"disk: {saved / _MIB:,.0f} MiB for a checkpoint, {copies * saved / _MIB:,.0f} MiB for all that are kept"


def _about_traffic(config: RunConfig, workload: Workload | None) -> Iterator[str]:
    """Bytes that leave a worker, as docs/SCALING.md counts them."""
    if workload is None:
        return
    workers, told = config.runtime.most_workers, []
    if workers > 1:
        what = "gradients and gathered layers" if workload.sharded else "gradients"
        told.append(f"{workload.sent(workers) / _MIB:,.0f} MiB of {what} a step from each worker")
        if workload.arm_gradients:
            arms = f"{workload.sent_for_arms(workers) / _MIB:,.0f} MiB of arms' gradients"
            told.append(f"{arms} every {workload.interval} steps from each")
    if workload.interval:
        told.append(f"a snapshot of {workload.snapshot / _MIB:,.0f} MiB every {workload.interval} steps")
    told.append(f"a checkpoint of {workload.checkpoint / _MIB:,.0f} MiB every {workload.checkpoint_every} steps")
    yield f"traffic: {', '.join(told)}"


def _about_time(config: RunConfig, length: int, workload: Workload | None) -> str:
    """From an earlier run that did the same work a step; else no more than a lower bound."""
    tokens = config.train.total_steps(length) * config.train.batch_size * length
    for record in _earlier(config):
        if record.tokens and record.seconds and _same_work(record, config):
            rate = record.tokens / record.seconds
            paced = f"{number(rate)} tokens/s of {record.place}, whose steps do the same"
            return f"time: about {duration(tokens / rate)} at the {paced}"
    unknown = "no run beside this one does the same work in a step (its first lines will tell)"
    if workload is None or config.runtime.address != "local" or config.runtime.gpus_per_worker:
        return f"time: not known; {unknown}"
    ceiling = matmul_flops(torch.device("cpu"), _DTYPES[config.train.precision], torch.get_num_threads())
    least = tokens * workload.flops_per_token / ceiling
    return f"time: more than {duration(least)}, which its matrix products alone would take here; {unknown}"


def _earlier(config: RunConfig) -> Iterator[Record]:
    """Runs in the folder where this one would lie, the newest first."""
    if config.run_dir is not None and is_uri(config.run_dir):
        return
    folder = Path("runs") if config.run_dir is None else expanded(config.run_dir).parent
    with contextlib.suppress(UserError, OSError):
        for place in sorted(find_runs(str(folder)), key=lambda one: -Path(one, "config.yaml").stat().st_mtime):
            yield read_run(place)


def _same_work(record: Record, config: RunConfig) -> bool:
    mine = config.model_dump(mode="json")
    theirs = record.config
    alike = ("batch_size", "micro_batch_size", "precision", "compile", "compile_mode", "draw")
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
