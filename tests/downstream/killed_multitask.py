"""A multi-task run that is killed and goes on, beside one that is not."""

from collections.abc import Callable

import pytest

from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.results import MultitaskResult
from mlpt.downstream.multitask.run import MultitaskRun, run_multitask


def whole_and_killed(
    config: Callable[[str], MultitaskConfig], monkeypatch: pytest.MonkeyPatch
) -> tuple[MultitaskResult, MultitaskResult, list[str]]:
    """Results of `config("whole")` and of `config("killed")`, killed before step 8; what that said as it went on."""
    whole = run_multitask(config("whole"), lambda text: None)
    one_step = MultitaskRun.one_step

    def killed(run):
        if run.step == 8:
            raise KeyboardInterrupt
        return one_step(run)

    monkeypatch.setattr(MultitaskRun, "one_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run_multitask(config("killed"), lambda text: None)
    monkeypatch.undo()
    said: list[str] = []
    return whole, run_multitask(config("killed"), said.append), said
