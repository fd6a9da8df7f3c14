"""Whatever the system refuses, and wherever: every command ends with one line, and loses nothing.

Errors are injected at every call that opens, makes, moves or removes something (Python's own audit events), and files
are really cut off (a limit of the process) where libraries write them from Rust or C++.
"""

import contextlib
import errno
import io
import os
import resource
import shlex
import signal

import pytest
from failing_files import ERRORS, Fault, failing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlpt import outputs

SMALL = "--set vocab_size=200 --set block_size=32"
COMMANDS = {
    "prepare": f"prepare text.txt --out new {SMALL}",
    "prepare over": f"prepare 'two words' --out blocks {SMALL} --overwrite",
    "pretrain": "pretrain recipe.yaml run_dir=new train.steps=3 train.checkpoint_every=1",
    "pretrain over": "pretrain recipe.yaml --overwrite train.steps=1",
    "resume": "pretrain --resume run train.steps=4",
    "prune": "prune run --sparsity 0.5 --out new",
    "prune over": "prune run --sparsity 0.25 --out masks --overwrite",
    "prune pt": "prune run --sparsity 0.5 --out new.pt",
    "prune heads": "prune run --sparsity 0.5 --structured heads --out new",
    "convert": "masks convert masks.pt new",
    "compare": "masks compare masks masks.pt --json new.json",
    "distance": "masks distance masks masks.pt --json new.json",
    "show": "masks show masks --json new.json",
    "evaluate": "evaluate run --batches 1 --json new.json",
    "export": "export run --out new",
    "export over": "export run --masks masks --out exported --overwrite",
    "export heads": "export run --heads heads.npy --out new",
    "finetune": "finetune run --tasks docs_package --out new seeds=[1] max_steps=1",
    "multitask": "finetune run --tasks docs_package --multitask encoder=shared --out new max_steps=1",
    "tune": "tune sampling sweep.folder=new runtime.address=127.0.0.1:9",
    "resumed sweep": "tune --resume sweep runtime.address=127.0.0.1:9",
    "doctor": "doctor",
    "bench": "bench nothing --json new.json",
}
KINDS = {"run": outputs.RUN, "masks": outputs.MASKS, "exported": outputs.EXPORT, "blocks": outputs.BLOCKS}


def is_told(ended):
    """One line that says what is wrong; or the command got along without what failed."""
    lines = [line for line in ended.err.splitlines() if line.startswith("mlpt: ")]
    assert "Traceback" not in ended.out + ended.err, ended.err
    if ended.code == 0:
        assert lines == []
    else:
        assert ended.code == (1 if "BAD" in ended.out else 2), ended  # `mlpt doctor` tells in a line of its own
        assert len(lines) == 1 or "BAD" in ended.out, ended.err


def picture(workspace, line):
    """What may not be lost. A run that goes on changes its own files."""
    for place, kind in KINDS.items():  # an attempt before this one could not put back what it had set aside
        outputs.check_folder(workspace.folder / place, kind, overwrite=True)
    own = ("run/",) if "--resume" in line else ()
    # A lease that could not be taken away is its dead owner's, and nobody's loss.
    files = {name: seen for name, seen in workspace.files().items() if outputs.LEASE not in name}
    return {name: seen for name, seen in files.items() if not name.startswith(("new", *own))}


def is_kept(workspace, before):
    """After a command that failed: what was there is there, or set aside where nothing could be moved any more."""
    after = workspace.files()
    for name, seen in before.items():
        top, _, rest = name.partition("/")
        aside = [after.get(f"{top}/{folder}/{rest}") for folder in (".replaced", ".replacing")]
        assert ".replac" in name or seen in (after.get(name), *aside), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_error_of_the_system_is_one_line(own_workspace, name):
    workspace, line = own_workspace, COMMANDS[name]

    @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(at=st.integers(0, 60), number=st.sampled_from(ERRORS), lasting=st.booleans())
    def check(at, number, lasting):
        before = picture(workspace, line)
        with failing(Fault(workspace.folder, at, number, lasting)):
            ended = workspace.run(line)
        is_told(ended)
        if ended.code:
            is_kept(workspace, before)

    check()


@contextlib.contextmanager
def largest_file(size):
    """As a full disk: writes past `size` bytes of a file fail, in whatever language."""
    kept, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, kept)


WRITING = [name for name in COMMANDS if name not in ("doctor", "bench", "tune", "resumed sweep")]


@pytest.mark.parametrize("size", [0, 100, 20_000])
@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_is_one_line_whoever_writes(own_workspace, name, size):
    before = picture(own_workspace, COMMANDS[name])
    with largest_file(size):
        ended = own_workspace.run(COMMANDS[name])
    is_told(ended)
    if ended.code:
        is_kept(own_workspace, before)
    if size == 0:
        assert ended.code == 2
        assert "the disk is full" in ended.err or "no room to write" in ended.err, ended.err


class Full(io.StringIO):
    """Standard output on a disk that is full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_output_that_goes_nowhere_is_one_line(workspace):
    with contextlib.redirect_stdout(Full()):
        ended = workspace.run("masks show masks")
    assert ended.code == 2
    assert "the disk is full" in ended.err


def test_a_policy_that_finds_no_room_is_one_line_with_the_way_on(own_workspace, monkeypatch):
    def full(self, policy, step):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.run_dir / "policies" / "policy_000000.json"))

    with monkeypatch.context() as patch:
        patch.setattr("mlpt.training.tracker.Tracker.policy", full)
        ended = own_workspace.run("pretrain recipe.yaml run_dir=new")
    is_told(ended)
    assert "policies/policy_000000.json: the disk is full" in ended.err
    way_on = shlex.split(ended.err.rpartition("`mlpt ")[2].strip().rstrip("`"))
    assert way_on[-1] == "--restart"  # there is no checkpoint yet
    assert own_workspace.run(way_on).code == 0


@pytest.mark.parametrize(
    "line",
    [
        "prepare docs --out new",
        "pretrain recipe.yaml run_dir=new data.source=text.txt data.block_size=16",
        "pretrain recipe.yaml run_dir=new data.source=docs data.block_size=16",
    ],
)
def test_a_cache_that_cannot_be_used_is_named_with_what_to_set(workspace, monkeypatch, line):
    monkeypatch.setenv("XDG_CACHE_HOME", str(workspace.folder / "file" / "cache"))
    ended = workspace.run(line)
    is_told(ended)
    assert "set XDG_CACHE_HOME to a folder that you may write" in ended.err, ended.err
    workspace.is_unchanged()
