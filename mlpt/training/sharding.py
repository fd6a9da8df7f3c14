"""What a run whose workers share the layers out among them (`train.parallel=fsdp`) can't have."""

from typing import Any

from mlpt.objectives import OBJECTIVES, objective_class

_PLAIN = ("mlm", "clm", "atd", "dtd", "cse")  # whose losses are one pass of the model that trains, and nothing else


def why_not_sharded(config: Any) -> str | None:
    """Why a run of this configuration (`mlpt.config.RunConfig`) can't share its layers out, and what to do.

    None: it can, or doesn't ask for it.
    """
    train, runtime, meta = config.train, config.runtime, config.meta
    if train.parallel != "fsdp":
        return None
    known = [OBJECTIVES[name] for name in _PLAIN]
    for name, values in config.objectives.items():
        smoothing = values.get("smoothing") or {}
        if objective_class(name, values) not in known or smoothing.get("reference", "current") != "current":
            return f"trains {', '.join(_PLAIN)} without references of their own: leave objectives.{name} out"
    if not isinstance(runtime.num_workers, int):
        return "has a fixed number of workers: set runtime.num_workers to one number"
    if train.micro_batches % runtime.most_workers:
        return (
            f"makes equally many passes on each worker, and {train.micro_batches} micro-batches are not a multiple of "
            f"{runtime.most_workers} workers: set train.micro_batch_size"
        )
    refused = {
        "tasks": config.tasks or config.measured_tasks,
        "masks": config.masks is not None,
        "train.compile": train.compile,
        "train.compress_gradients": train.compress_gradients,
        "train.precision=fp16": train.precision == "fp16",
        f"train.optimizer.kind={train.optimizer.kind}": train.optimizer.kind != "adamw",
        "runtime.replay_every": runtime.replay_every is not None,
        f"meta.lookahead.engine={meta.lookahead.engine}": meta.keeps_gradients,
    }
    found = next((setting for setting, asked in refused.items() if asked), None)
    return None if found is None else f"can't be combined with {found}: leave that out"
