"""The one rule for outputs, for every command that leaves something: what is there is replaced only on request."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlpt import outputs
from mlpt.errors import UserError

SMALL = "--set vocab_size=200 --set block_size=32"
FINETUNE = "finetune run --tasks docs_package seeds=[1] max_steps=1 keep_model=none"

# A command without its place, the place of an earlier result of it, and one file of that.
REPLACING = [
    (f"prepare two\\ words/lr=3e-4.txt {SMALL} --set dev_share=0.2", "--out", "blocks", "manifest.json"),
    ("pretrain recipe.yaml train.steps=1", "", "run", "config.yaml"),
    ("prune run --sparsity 0.25", "--out", "masks", "masks.safetensors"),
    ("prune run --sparsity 0.25", "--out", "masks.pt", ""),
    ("prune run --sparsity 0.5 --structured heads --method random --seed 3", "--out", "heads.npy", ""),
    ("export run --masks masks", "--out", "exported", "config.json"),
    ("evaluate run --batches 2", "--json", "evaluated.json", ""),
    ("evaluate run --suite cloze=cloze.jsonl", "--json", "known.json", ""),
    ("question run blocks metrics=random seed=1", "--split dev --out", "scores", "manifest.json"),
    ("hard-tokens import hard.pkl --blocks blocks --beyond drop", "--split dev --out", "imported", "manifest.json"),
    ("hard-tokens export scores", "--threshold 0.5", "hard.pkl", ""),
]


@pytest.mark.parametrize(("line", "option", "place", "file"), REPLACING)
def test_an_earlier_result_is_replaced_on_request_alone(own_workspace, line, option, place, file):
    told = f"{option} {place}" if option else ""
    written = own_workspace.folder / place / file if file else own_workspace.folder / place
    before = written.stat().st_mtime_ns
    refused = own_workspace.run(f"{line} {told}")
    assert refused.code == 2, refused
    assert "--overwrite" in refused.err
    own_workspace.is_unchanged()
    replaced = own_workspace.run(f"{line} {told} --overwrite")
    assert replaced.code == 0, replaced
    assert written.stat().st_mtime_ns > before
    assert not list(own_workspace.folder.rglob(".replaced"))


@pytest.mark.parametrize(("line", "option", "place", "file"), [case for case in REPLACING if case[3]])
def test_what_a_user_put_beside_a_result_stays(own_workspace, line, option, place, file):
    notes = own_workspace.folder / place / "notes.md"
    notes.write_text("mine\n")
    refused = own_workspace.run(f"{line} {option and f'{option} {place}'} --overwrite")
    assert refused.code == 2, refused
    assert f"{place} holds notes.md besides" in refused.err
    assert notes.read_text() == "mine\n"
    assert (own_workspace.folder / place / file).is_file()


@pytest.mark.parametrize("all_at_once", ["", "--multitask encoder=shared"])
def test_a_fine_tuning_goes_on_where_it_was_and_begins_anew_on_request(own_workspace, all_at_once):
    one = FINETUNE.replace("seeds=[1]", "") if all_at_once else FINETUNE
    line = f"{one} {all_at_once} --out tuned"
    assert own_workspace.run(line).code == 0
    results = own_workspace.folder / "tuned/results.json"
    first = json.loads(results.read_text())
    other = own_workspace.run(f"{line} batch_size=16")
    assert other.code == 2, other
    assert "--overwrite" in other.err
    assert json.loads(results.read_text()) == first
    assert own_workspace.run(f"{line} batch_size=16 --overwrite").code == 0
    assert json.loads(results.read_text()) != first


def test_a_fine_tuning_on_another_task_joins_an_earlier_one_and_says_what_was_asked_last(own_workspace):
    assert own_workspace.run(f"{FINETUNE} --out tuned").code == 0
    other = FINETUNE.replace("docs_package", "docs_summary")
    refused = own_workspace.run(f"{other} batch_size=16 --out tuned")
    assert refused.code == 2, refused
    assert "other settings or data (batch_size)" in refused.err
    tuned = own_workspace.folder / "tuned"
    assert yaml.safe_load((tuned / "finetune.yaml").read_text())["tasks"] == ["docs_package"]
    assert own_workspace.run(f"{other} --out tuned").code == 0
    assert yaml.safe_load((tuned / "finetune.yaml").read_text())["tasks"] == ["docs_summary"]
    found = json.loads((tuned / "results.json").read_text())["cells"]
    assert [one["task"] for one in found] == ["docs_package", "docs_summary"]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("question run blocks --out scores --split dev metrics=random", "scores"),
        ("hard-tokens import hard.pkl --blocks blocks --split dev --out imported", "imported"),
    ],
)
def test_the_same_command_finds_its_scores_and_finishes_those_that_are_not(own_workspace, line, place):
    folder = own_workspace.folder / place
    whole = (folder / "manifest.json").read_bytes()
    assert own_workspace.run(line).code == 0
    (folder / "manifest.json").unlink()  # as a kill before its end leaves it
    assert own_workspace.run(line).code == 0
    assert (folder / "manifest.json").read_bytes() == whole
    (own_workspace.folder / "hard.pkl").write_bytes(pickle.dumps({0: np.array([3])}))
    if "import" in line:  # another file of that name
        refused = own_workspace.run(line)
        assert refused.code == 2
        assert "--overwrite" in refused.err


def test_a_fine_tuning_that_cannot_begin_leaves_nothing(workspace):
    workspace.refuses(f"{FINETUNE} --masks missing --out tuned", "there is no mask file")


def test_json_files_are_whole_or_not_there(own_workspace, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    ended = own_workspace.run("masks show masks --json new.json")
    assert ended.code == 2
    assert "the disk is full" in ended.err
    own_workspace.is_unchanged()


# ---------------------------------------------------------------- the rule by itself

KIND = outputs.Kind("a thing", marks=("mark",), results=("result",), contents=("mark", "result", "more*"))


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    ("names", "overwrite", "says"),
    [
        ([], False, None),
        (["mark"], False, None),  # a start that failed
        (["mark", "result"], False, "holds a thing; name a new folder, or replace it with --overwrite"),
        (["mark", "result", "more.txt"], True, None),
        (["mark", "result", "else"], True, "holds else besides a thing"),
        (["mark", "else"], False, "holds else besides a thing"),
        (["result"], True, "is not empty .it holds result. and is not a thing that mlpt made"),
        ([".hidden"], True, "is not empty"),
    ],
)
def test_which_folders_may_take_a_result(tmp_path, names, overwrite, says):
    place = write(tmp_path / "place", *names)
    if says is None:
        assert outputs.check_folder(place, KIND, overwrite) == place
        return
    with pytest.raises(UserError, match=says):
        outputs.check_folder(place, KIND, overwrite)


def test_going_on_with_a_result_replaces_nothing_and_so_minds_nothing(tmp_path):
    place = write(tmp_path / "place", "mark", "result", "else")
    with outputs.growing_folder(place, KIND, overwrite=False, files={"mark": "another"}) as folder:
        assert folder == place
    assert {name: (place / name).read_text() for name in os.listdir(place)} == {
        name: name for name in ("mark", "result", "else")
    }


def failing(place, error, *names):
    with outputs.taken_folder(place, KIND, overwrite=True):
        write(place, *names)
        raise error


@pytest.mark.parametrize("error", [UserError("no"), OSError("no"), KeyboardInterrupt(), RuntimeError("no")])
def test_a_failure_puts_back_what_was_there(tmp_path, error):
    place = write(tmp_path / "place", "mark", "result", "more.txt")
    with pytest.raises(type(error)):
        failing(place, error, "mark", "more-half", "theirs")
    assert sorted(os.listdir(place)) == ["mark", "more.txt", "result", "theirs"]


def test_a_failure_removes_what_was_made_and_no_more(tmp_path):
    place = tmp_path / "a" / "b" / "c"
    write(tmp_path / "a", "theirs")
    with pytest.raises(UserError):
        failing(place, UserError("no"), "mark")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "theirs"]


def test_a_failure_after_there_is_something_to_keep_keeps_it(tmp_path):
    place = write(tmp_path / "place", "mark", "result")
    with pytest.raises(UserError):
        failing(place, UserError("later"), "mark", "result", "more.txt")
    assert {"mark", "result", "more.txt"} <= set(os.listdir(place))
    with outputs.new_folder(place, KIND, overwrite=True):
        assert [name for name in os.listdir(place) if not name.startswith(outputs.LEASE)] == [".replaced"]


def test_two_processes_never_write_into_one_folder(tmp_path):
    place = write(tmp_path / "place", "mark", "result")
    with outputs.new_folder(place, KIND, overwrite=True):
        for overwrite in (False, True):
            with pytest.raises(UserError, match=f"another process is writing to {place}"):
                outputs.check_folder(place, KIND, overwrite)  # it sees what was set aside, and leaves it there
        with pytest.raises(UserError, match="another process"), outputs.taken_folder(place, KIND, overwrite=True):
            pass
        write(place, "mark", "result")
    assert sorted(os.listdir(place)) == ["mark", "result"]


def test_who_comes_second_does_not_replace_what_the_first_has_made_meanwhile(tmp_path):
    place = outputs.check_folder(tmp_path / "place", KIND)
    with outputs.new_folder(place, KIND, overwrite=False):
        write(place, "mark", "result")
    with pytest.raises(UserError, match="holds a thing"), outputs.taken_folder(place, KIND, overwrite=False):
        pass
    assert sorted(os.listdir(place)) == ["mark", "result"]


def test_what_a_killed_attempt_set_aside_comes_back(tmp_path):
    place = write(tmp_path / "place", "mark", "more-half")
    write(place / ".replaced", "mark", "result")
    with pytest.raises(UserError, match="holds a thing"):
        outputs.check_folder(place, KIND)
    assert sorted(os.listdir(place)) == ["mark", "result"]


def test_what_was_half_moved_when_an_attempt_was_killed_comes_back_whole(tmp_path):
    place = write(tmp_path / "place", "mark")
    write(place / ".replacing", "result", "more.txt")
    with pytest.raises(UserError, match="holds a thing"):
        outputs.check_folder(place, KIND)
    assert sorted(os.listdir(place)) == ["mark", "more.txt", "result"]


def test_a_folder_may_be_the_working_folder_or_a_link(tmp_path, monkeypatch):
    here = write(tmp_path / "here")
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    for place in (".", tmp_path / "link"):
        with outputs.new_folder(place, KIND, overwrite=False) as folder:
            write(folder, "mark", "result")
        assert sorted(os.listdir(".")) == ["mark", "result"]
        shutil.rmtree(here)
        write(here)
        os.chdir(here)


@pytest.mark.parametrize("place", ["~nobody-of-that-name/x", "a\0b", " "])
def test_what_is_no_path_is_one_line(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        outputs.check_folder(place, KIND)
    with pytest.raises(UserError):
        outputs.check_file(place)
