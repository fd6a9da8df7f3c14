"""A run in this very process, as its one rank."""

from pathlib import Path
from typing import Any

import torch

from mlpt.config import RunConfig
from mlpt.run.build import run_rank
from mlpt.training.group import Group


def run(config: RunConfig, blocks: str, folder: Path, **keywords: Any) -> dict[str, Any]:
    """The summary of `run_rank` on one thread, in a folder made for it."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return run_rank(config, blocks, folder, Group(), **keywords)
