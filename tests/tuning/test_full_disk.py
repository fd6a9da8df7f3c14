"""A disk that is full in the middle of a sweep is no fault of its trials: one line, and the command that goes on."""

import errno
import os
from types import SimpleNamespace

import pytest
from ray import tune

from mlpt.errors import UserError
from mlpt.tuning import sweep, trial
from mlpt.tuning.ranking import Trial
from mlpt.tuning.space import Space

SPACE = Space(
    parameters={"train.optimizer.lr": tune.loguniform(1e-4, 1e-2)},
    metrics={"dev/mlm": "min"},
    tokens=1000,
    trials=1,
    evaluations=1,
)


@pytest.fixture
def full(monkeypatch):
    """Every disk is full."""

    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", no_room)


@pytest.fixture
def reported(monkeypatch, tmp_path):
    """What a trial reports that ends with a line for people."""
    found = []

    def fails(*_):
        raise UserError("no room to write checkpoint step_00000001")

    job = SimpleNamespace(config=lambda *_: None, budget=lambda *_: None, train=fails)
    monkeypatch.setattr(trial, "job_of", lambda space: job)
    monkeypatch.setattr(trial, "report_again", lambda run_dir: False)
    monkeypatch.setattr(trial, "report_failure", lambda *given: found.append(given[2]))
    monkeypatch.setattr(trial, "Reporter", lambda *_: None)
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "a"))
    plan = SimpleNamespace(space=SPACE, folder=tmp_path, overrides={}, length=8)

    def run():
        trial.run_trial({"point": {}, "seed": 0}, plan)
        return found

    return run


def test_a_trial_that_finds_no_room_is_not_reported_as_a_bad_point(reported, full):
    with pytest.raises(OSError, match="No space left"):
        reported()


def test_a_trial_that_fails_where_there_is_room_is(reported, tmp_path):
    assert reported() == ["no room to write checkpoint step_00000001"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["trial", "state of Tune"])
def test_a_sweep_ends_with_one_line(monkeypatch, tmp_path, full, broken):
    failed = Trial("a", {}, {}, 0, {}, 0, 0.0, "failed", "OSError: No space left on device", "")

    def finished(results, space):
        if broken == "trial":
            return [failed]
        raise EOFError("the file that says so is cut off")

    monkeypatch.setattr(sweep, "finished_trials", finished)
    monkeypatch.setattr(sweep.tune, "Tuner", lambda *_, **__: SimpleNamespace(fit=lambda: None))
    monkeypatch.setattr(sweep.tune.Tuner, "can_restore", lambda state: False, raising=False)
    monkeypatch.setattr(sweep.tune, "with_parameters", lambda function, **_: function)
    monkeypatch.setattr(sweep.tune, "with_resources", lambda function, needs: function)
    a_sweep = SimpleNamespace(folder=tmp_path, options=SimpleNamespace(retries=0))
    plan = SimpleNamespace(resources={}, space=SPACE)
    with pytest.raises(UserError, match=f"the disk is full; .* then `mlpt tune --resume {tmp_path}`"):
        sweep._tuned(a_sweep, plan, "search", {}, tune.TuneConfig())
