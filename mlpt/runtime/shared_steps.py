"""A fine-tuning whose steps several Ray Train workers share, as if it ran in this process."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device

from mlpt.config import RuntimeConfig
from mlpt.downstream.work import Say, Shown
from mlpt.errors import UserError
from mlpt.logs import Event
from mlpt.runtime.hub import Relay, asked
from mlpt.runtime.trainer import fit, forget, make_hub, make_trainer, why_failed
from mlpt.training.group import Group

Work = Callable[[Group, Say, Shown], Any]  # as one rank; picklable
_SHOW_S = 0.5


def on_workers(work: Work, runtime: RuntimeConfig, folder: Path, say: Say, show: Shown) -> Any:
    """What `work` returns on rank 0 of as many workers as the runtime has; within a Ray session.

    Killed workers start again, and `work` goes on from its checkpoints, which all of them see in `folder`. Raises
    `UserError` for what a rank says people can put right.
    """
    hub = make_hub(runtime)
    settings = {"work": work, "hub": hub, "threads": max(1, (os.cpu_count() or 1) // runtime.most_workers)}
    trainer = make_trainer(_rank, settings | {"cwd": os.getcwd()}, runtime, folder)
    try:
        with Relay(hub, _Heard(say, show)):
            outcome: dict[str, Any] = fit(trainer, hub).return_value
    except Exception as error:
        raise why_failed(error, hub, "the same command goes on from the last checkpoint") from error
    finally:
        forget(folder)
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["result"]


class _Heard:
    """Hands on what rank 0 says and shows."""

    def __init__(self, say: Say, show: Shown) -> None:
        self.say, self._show = say, show

    def handle(self, event: Event) -> None:
        if event["event"] == "shown":
            self._show(*event["shown"])
        else:
            self.say(event["text"])


def _rank(settings: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs."""
    hub, context = settings["hub"], ray.train.get_context()
    earlier = asked(hub.error.remote(), or_else=None)
    if earlier is not None:  # another rank said what is wrong before the group was restarted
        return {"error": earlier}
    torch.set_num_threads(settings["threads"])
    with contextlib.suppress(OSError):
        os.chdir(settings["cwd"])  # where relative paths lead to what the driver means
    shown = 0.0

    def say(text: str) -> None:
        hub.push.remote({"event": "said", "text": text})

    def show(done: int, total: int, note: str) -> None:
        nonlocal shown
        if done == total or time.monotonic() - shown > _SHOW_S:
            shown = time.monotonic()
            hub.push.remote({"event": "shown", "shown": (done, total, note)})

    try:
        group = Group(context.get_world_rank(), context.get_world_size(), get_device())
        return {"result": settings["work"](group, say, show)}
    except UserError as error:
        asked(hub.fail.remote(str(error)), or_else=None)
        raise  # the other ranks may wait in a collective: only a restart of the group frees them
