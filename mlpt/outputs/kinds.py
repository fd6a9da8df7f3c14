"""The kinds of results that commands leave in folders, told by the names in them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What commands leave in a folder, told by the names in it. Patterns are `glob`'s, relative to the folder.

    name      for people.
    marks     any of them says: mlpt made this folder.
    results   any of them says: there is something to lose. A folder that has a mark and no result is what a start that
              failed has left, and is used again.
    contents  what may lie in it; a folder that holds anything else is not replaced. `NAME/INSIDE` allows those folders
              that hold an INSIDE.
    """

    name: str
    marks: tuple[str, ...]
    results: tuple[str, ...]
    contents: tuple[str, ...]


RUN = Kind(
    "a run",
    marks=("config.yaml",),
    results=("metrics.jsonl", "checkpoints/step_*", "model/*", "summary.json"),
    contents=(
        *("config.yaml", "metrics.jsonl", "summary.json", "blocks.json", "run.json", "report.html", "mixture.json"),
        *("history.json", "boards.json", "wandb"),
        *("tensorboard", "policies", "checkpoints", "model", "models", "masks", "samples", "logs"),
    ),
)
SWEEP = Kind(
    "a sweep",
    marks=("sweep.yaml",),
    results=("trials/*", "tune/*", "trials.parquet"),
    contents=(
        *("sweep.yaml", "trials", "tune", "features", "blocks.json", "trials.parquet", "best.yaml", "front"),
        "report.html",
    ),
)
FINE_TUNING = Kind(
    "a fine-tuning",
    marks=("finetune.yaml", "results.json", "*/lr*-seed*/cell.json"),
    results=("results.json", "*/lr*-seed*/result.json", "*/lr*-seed*/checkpoints/step_*"),
    contents=("finetune.yaml", "results.json", "*/lr*-seed*"),
)
MULTITASK = Kind(
    "a multi-task fine-tuning",
    marks=("config.json",),
    results=("results.json", "metrics.jsonl", "checkpoints/step_*"),
    contents=(
        "config.json",
        "results.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "stock",
        "submission",
        "predictions",
    ),
)
STUDY = Kind(
    "a study",
    marks=("declared.json",),
    results=("runs/*", "measured/*"),
    contents=(
        *("declared.json", "study.json", "study.md", "runs", "measured", "asked", "logs", "blocks", "features"),
        "report.html",
    ),
)
MOONS = Kind(
    "a two-moons study",
    marks=("declared.yaml",),
    results=("cells/*",),
    contents=("declared.yaml", "cells", "maps.png", "results.json", "study.md"),
)
BLOCKS = Kind(
    "prepared text",
    marks=("manifest.json", "manifest.json.unfinished", "shards"),
    results=("manifest.json",),
    contents=("manifest.json", "manifest.json.unfinished", "shards", "tokenizer"),
)
SCORES = Kind(
    "scores of tokens",
    marks=("question.json", "question.json.partial"),
    results=("manifest.json", "parts/*"),
    contents=("question.json*", "manifest.json*", "parts"),
)
MASKS = Kind(
    "masks",
    marks=("sparsity.json", "*_mask.npy"),
    results=("masks.safetensors", "*_mask.npy"),  # written last
    contents=("masks.safetensors", "sparsity.json", "*_mask.npy"),
)
EXPORT = Kind(
    "an exported model",
    marks=("export.json", "export.json.unfinished"),
    results=("export.json",),
    contents=(
        *("export.json", "export.json.unfinished", "*config.json", "model*.safetensors", "*.index.json", "README.md"),
        *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
        *("masks.safetensors", "sparsity.json", "compact.json", "*_mask.npy", "heads.*", "*.bpe.model", "spiece.model"),
    ),
)
