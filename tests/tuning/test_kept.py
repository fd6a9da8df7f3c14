"""The copy of Tune's own files, from which a sweep goes on whose disk was full."""

import json
import os

import pytest

from mlpt.tuning.kept import Keep, is_whole, keep, mend

FILES = {"tuner.pkl": b"tuner.", "basic-variant-state-1.json": b"pickled.", "callback-states-1.pkl": b"callbacks."}


@pytest.fixture
def state(tmp_path):
    """Tune's folder of a phase, with two trials that have reported."""
    folder = tmp_path / "tune" / "search"
    for trial in ("a_00000", "a_00001"):
        (folder / f"run_{trial}").mkdir(parents=True)
        (folder / f"run_{trial}" / "result.json").write_text('{"step": 1}\n{"step": 2}\n')
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "experiment_state-1.json").write_text(json.dumps({"trials": ["a_00000", "a_00001"]}))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", [*FILES, "experiment_state-1.json"])
@pytest.mark.parametrize("left", [0, 5])
def test_a_file_that_was_cut_short_comes_back_as_it_was(state, name, left):
    keep(state)
    whole = contents(state)
    os.truncate(state / name, left)
    assert not is_whole(state)
    keep(state)  # a copy of this would be worth nothing
    mend(state)
    assert contents(state) == whole


def test_what_is_whole_stays_and_a_report_that_was_cut_short_goes(state):
    keep(state)
    (state / "experiment_state-1.json").write_text(json.dumps({"trials": ["later"]}))
    result = state / "run_a_00000" / "result.json"
    result.write_text('{"step": 1}\n{"st')
    whole = contents(state)
    mend(state)
    assert contents(state) == whole
    assert result.read_text() == '{"step": 1}\n'


def test_without_a_copy_the_phase_begins_again(state):
    os.truncate(state / "tuner.pkl", 0)
    mend(state)
    assert not state.exists()
    mend(state)  # nothing to be mended


def test_the_copy_follows_what_tune_writes_and_needs_no_room_to_fail(state, monkeypatch):
    again = Keep(str(state))
    again.on_step_end(1, [])
    (state / "experiment_state-1.json").write_text(json.dumps({"trials": ["a_00000", "a_00001", "a_00002"]}))
    again.on_step_end(2, [])  # too soon
    kept = state.with_name(".search.kept") / "experiment_state-1.json"
    assert "a_00002" not in kept.read_text()
    monkeypatch.setattr("mlpt.tuning.kept._EVERY_S", 0.0)
    another = Keep(str(state))
    another.on_step_end(1, [])
    assert "a_00002" in kept.read_text()

    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", no_room)
    another.on_step_end(2, [])
    assert "a_00002" in kept.read_text()
