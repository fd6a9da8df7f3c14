"""Several ranks on this machine for a test: processes of one thread each, joined by gloo."""

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from mlpt.training.group import Group


def run_ranks(main: Callable[..., None], *args: Any, world: int = 2) -> None:
    """Run `main(group, *args)` as each of `world` ranks; raises what the first one that failed has raised."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (main, world, f"file://{folder}/rendezvous", args), nprocs=world)


def _rank(rank: int, main: Callable[..., None], world: int, rendezvous: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=world)
    main(Group(rank, world), *args)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Without destructors: gloo's threads outlive destroy_process_group, and one that lets go of a tensor while the
    # interpreter ends aborts the process; process groups may also wait for each other.
    os._exit(0)
