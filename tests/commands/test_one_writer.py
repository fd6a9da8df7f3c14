"""Every command that writes into a folder for long refuses one that another process writes into, in one line."""

import os

import pytest

from mlpt import outputs

# command -> the folder that somebody else holds
COMMANDS = {
    "pretrain recipe.yaml run_dir=run --overwrite": "run",
    "pretrain --resume run train.steps=4": "run",
    "pretrain --resume run --restart": "run",
    "finetune run --tasks docs_package --out new seeds=[1] max_steps=1": "new",
    "finetune run --tasks docs_package --multitask --out new encoder=shared max_steps=1": "new",
    "tune sampling sweep.folder=new": "new",
    "tune --resume sweep": "sweep",
    "question run blocks --out new": "new",
    "prepare text.txt --out new": "new",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_second_writer_is_refused_by_the_name_of_the_first(own_workspace, line):
    folder = own_workspace.folder / COMMANDS[line]
    folder.mkdir(exist_ok=True)
    if folder.name == "sweep":
        (folder / "sweep.yaml").write_text("space: sampling\nwords: []\n")
    with outputs.alone_in(folder):
        before = own_workspace.files()
        ended = own_workspace.run(line)
        after = own_workspace.files()
    assert ended.code == 2, ended
    (said,) = [told for told in ended.err.splitlines() if told.startswith("mlpt: ")]
    assert said.startswith(f"mlpt: another process is writing to {folder} (process {os.getpid()} on "), said
    assert {name for name in before if name not in after} == set()
    assert {name for name in after if name.startswith(("run/", "new/", "sweep/"))} <= before.keys()


def test_a_run_goes_on_once_the_other_process_has_ended(own_workspace):
    assert own_workspace.run("pretrain --resume run train.steps=3").code == 0
    assert own_workspace.run("pretrain --resume run train.steps=4").code == 0
    assert not list(own_workspace.folder.rglob(f"{outputs.LEASE}*"))
