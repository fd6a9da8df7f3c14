"""A multi-task run that is killed and goes on, beside one that is not."""

from collections.abc import Callable

import pytest

from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.results import MultitaskResult
from mlpt.downstream.multitask.run import run_multitask
from mlpt.training.loop import Loop


def whole_and_killed(
    config: Callable[[str], MultitaskConfig], monkeypatch: pytest.MonkeyPatch
) -> tuple[MultitaskResult, MultitaskResult, list[str]]:
    """Results of `config("whole")` and of `config("killed")`, killed before step 8; what that said as it went on."""
    whole = run_multitask(config("whole"), lambda text: None)
    train_step = Loop.train_step

    def killed(loop):
        if loop.step == 8:
            raise KeyboardInterrupt
        train_step(loop)

    monkeypatch.setattr(Loop, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_multitask(config("killed"), lambda text: None)
    monkeypatch.undo()
    said: list[str] = []
    return whole, run_multitask(config("killed"), said.append), said
