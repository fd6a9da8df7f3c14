"""Runs at a URI: what goes up and in which order, what comes down elsewhere, and what storage that fails costs."""

import json
import os
import shutil

import pytest
import torch
from ranks import run_ranks

from mlpt.config import RunConfig
from mlpt.errors import UserError
from mlpt.run.build import run_rank
from mlpt.run.folder import new_run, open_run
from mlpt.settings import load_settings, merge
from mlpt.storage.checkpoint import COMMITTED
from mlpt.storage.mirror import MirroredCheckpoints, Remote
from mlpt.storage.store import StorageError, Store
from mlpt.training.group import Group

URI = "flaky://bucket/run"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Become a machine with a cache of its own; called with its name."""

    def become(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    become("first")
    return become


@pytest.fixture
def store(flaky, machine):
    return Store(URI)


class Run:
    """A machine's side of the run: its checkpoints, and the warnings that it gave."""

    def __init__(self, keep=3):
        self.folder = Remote(URI, "id").folder()
        self.warnings = []
        self.checkpoints = MirroredCheckpoints(self.folder, keep, Store(URI), self.warnings.append)

    def save(self, *steps, best=()):
        for step in steps:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(f'{{"step": {step}}}\n')
            position = (self.folder / "metrics.jsonl").stat().st_size
            tensors = {"model": {"weight": torch.full((3,), float(step))}}
            self.checkpoints.save(step, {"metrics_bytes": position}, tensors, step in best)
            self.checkpoints.wait()

    def latest(self):
        return self.checkpoints.latest(self.warnings.append)


def committed(store):
    names = store.names("checkpoints")
    return [name for name in names if store.read(f"checkpoints/{name}/{COMMITTED}") is not None]


def test_a_checkpoint_goes_up_with_its_metrics_and_policies_and_is_committed_last(store, flaky):
    run = Run()
    (run.folder / "policies" / "mixture.json").write_text("{}")
    run.save(10)
    written = [path.removesuffix(".partial") for doing, path in flaky.calls if doing == "write"]
    assert written == [
        "/bucket/run/metrics.jsonl",
        "/bucket/run/policies/mixture.json",
        "/bucket/run/checkpoints/step_00000010/model.safetensors",
        "/bucket/run/checkpoints/step_00000010/state.json",
        "/bucket/run/checkpoints/step_00000010/COMMITTED",
    ]
    assert run.warnings == []


def test_the_last_k_and_the_best_are_kept_at_the_uri_too(store):
    Run(keep=2).save(1, 2, 3, 4, 5, best=(2,))
    assert committed(store) == ["step_00000002", "step_00000004", "step_00000005"]
    assert json.loads(store.read("checkpoints/best.json")) == {"step": 2}


def test_another_machine_goes_on_with_the_newest_checkpoint_and_its_metrics(store, machine):
    Run().save(1, 2, best=(1,))
    machine("second")
    run = Run()
    assert run.checkpoints.steps() == []
    found = run.latest()
    assert (found.step, found.tensors["model"]["weight"][0]) == (2, 2)
    assert (run.folder / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert run.checkpoints.best() == 1
    run.save(3)
    assert committed(store) == ["step_00000001", "step_00000002", "step_00000003"]


def test_a_machine_that_was_away_meanwhile_takes_over_metrics_and_forgets_what_it_had(store, machine):
    Run().save(1, 2)
    machine("second")
    run = Run()
    run.latest()
    (run.folder / "metrics.jsonl").write_text("other and longer words on steps 1 and 2\n")
    run.save(3)
    machine("first")
    run = Run()
    assert run.latest().step == 3
    assert run.checkpoints.steps() == [3]
    assert (run.folder / "metrics.jsonl").read_text() == 'other and longer words on steps 1 and 2\n{"step": 3}\n'


def test_a_download_that_breaks_off_takes_nothing_away(store, flaky, machine):
    Run().save(1)
    machine("second")
    Run().latest()
    machine("first")
    Run().save(2)
    machine("second")
    run = Run()
    flaky.fail(on="step_00000002/state.json")
    with pytest.raises(StorageError):  # and not back to step 1: the storage says nothing about step 2
        run.latest()
    assert run.checkpoints.steps() == [1]
    assert [path.name for path in run.checkpoints.folder.iterdir()] == ["step_00000001"]


def test_what_is_damaged_here_is_mended_from_there(store):
    run = Run()
    run.save(1, 2)
    (run.checkpoints.path(2) / "model.safetensors").write_bytes(b"")
    assert run.latest().step == 2
    assert run.warnings == []


@pytest.mark.parametrize("damage", ["cut short", "missing", "uncommitted", "no list", "a way out"])
def test_what_is_damaged_there_is_passed_over(store, machine, tmp_path, damage):
    Run().save(1, 2)
    name = "checkpoints/step_00000002"
    if damage == "cut short":
        store.write(f"{name}/model.safetensors", b"short")
    elif damage == "missing":
        store.remove(f"{name}/state.json")
    elif damage == "uncommitted":
        store.remove(f"{name}/{COMMITTED}")
    elif damage == "no list":
        store.write(f"{name}/{COMMITTED}", b"[]")
    else:
        store.write(f"{name}/{COMMITTED}", json.dumps({"files": {"../../../x": [0, ""]}}).encode())
        store.write("x", b"")
    machine("second")
    run = Run()
    assert run.latest().step == 1
    assert len(run.warnings) == (0 if damage == "uncommitted" else 1)
    assert list(tmp_path.rglob("x")) == []


def test_failures_that_pass_change_nothing(store, flaky, machine):
    flaky.fail(times=3, on="model.safetensors")
    run = Run()
    run.save(1)
    assert flaky.fail_next == 0
    machine("second")
    flaky.fail(times=3, on="state.json")
    assert Run().latest().step == 1
    assert run.warnings == []


def test_storage_that_is_away_costs_no_checkpoint_and_gets_the_next_one_when_it_is_back(store, flaky):
    run = Run()
    run.save(1)
    flaky.fail()
    run.save(2, 3, best=(2,))
    assert run.checkpoints.steps() == [1, 2, 3]
    assert len(run.warnings) == 2
    assert "step 2 is safe in" in run.warnings[0]
    flaky.heal()
    run.save(4)
    assert committed(store) == ["step_00000001", "step_00000002", "step_00000004"]  # the newest, and the best
    assert len(run.warnings) == 2


def test_an_upload_that_breaks_off_is_no_checkpoint_and_is_cleared_away(store, flaky, machine):
    run = Run(keep=1)
    run.save(1)
    flaky.fail(on="step_00000002/state.json")
    run.save(2)
    assert committed(store) == ["step_00000001"]
    machine("second")
    flaky.heal()
    assert Run().latest().step == 1
    machine("first")
    run.save(3)
    assert store.names("checkpoints") == ["step_00000003"]


def test_at_the_end_everything_goes_up_or_one_line_says_where_it_lies(store, flaky):
    run = Run()
    (run.folder / "model").mkdir()
    (run.folder / "model" / "config.json").write_text("{}")
    flaky.fail()
    run.save(1)
    with pytest.raises(UserError, match=f"The run is complete in {run.folder} on .* --resume {URI}") as raised:
        run.checkpoints.finish()
    assert "\n" not in str(raised.value)
    flaky.heal()
    run.checkpoints.finish()
    assert committed(store) == ["step_00000001"]
    assert store.read("model/config.json") == b"{}"


def test_a_checkpoint_that_only_this_machine_has_goes_up_when_it_resumes(store, flaky):
    flaky.fail()
    Run().save(1)
    flaky.heal()
    assert Run().latest().step == 1
    assert committed(store) == ["step_00000001"]


def test_without_the_storage_a_run_goes_on_from_here_but_never_from_the_start(store, flaky, machine):
    Run().save(1)
    flaky.fail()
    run = Run()
    assert run.latest().step == 1
    assert run.warnings
    machine("second")
    with pytest.raises(StorageError, match=f"cannot list {URI}/checkpoints"):
        Run().latest()


def test_a_rank_gets_the_checkpoint_that_rank_0_goes_on_from_and_no_other_of_that_step(store, machine):
    lone = Run()
    lone.save(1)
    machine("second")
    shutil.rmtree(lone.folder / "checkpoints")
    store.remove("checkpoints")
    lead = Run()
    (lead.folder / "metrics.jsonl").write_text("another history\n")
    lead.save(1)
    mark = lead.latest().mark
    machine("first")
    run = Run()
    run.checkpoints.folder.mkdir(exist_ok=True)
    assert run.checkpoints.load(1, mark).mark == mark
    with pytest.raises(UserError, match="not the one that rank 0 goes on from"):
        run.checkpoints.load(1, "another")


def start(config):
    """What a run leaves that ends as soon as it has its place."""
    with new_run(config) as run:
        return run


def test_a_uri_that_holds_a_run_is_refused_and_opened_elsewhere(store, machine):
    config = RunConfig(run_dir=URI)
    with new_run(config) as run:
        (run.folder / "blocks.json").write_text("{}")
        run.send("blocks.json")
    with pytest.raises(UserError, match=f"{URI} holds a run of this very configuration; .* --resume {URI} --restart`"):
        start(config)
    with pytest.raises(UserError, match="another configuration"):
        start(config.model_copy(update={"seed": 1}))
    machine("second")
    again, opened = open_run(f"{URI}/")
    assert opened == config
    assert again.remote == run.remote
    assert again.folder != run.folder
    assert (again.folder / "blocks.json").read_text() == "{}"
    assert again.folder.stat().st_mode & 0o777 == 0o700


def test_the_working_folder_of_a_run_that_was_deleted_is_not_taken_for_the_new_run_there(store):
    config = RunConfig(run_dir=URI)
    old = start(config)
    (old.folder / "checkpoints" / "step_00000001").mkdir()
    for name in ("config.yaml", "run.json"):
        store.remove(name)
    assert list((start(config).folder / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("there", ["checkpoints/step_00000001/COMMITTED", "metrics.jsonl", "notes.txt"])
def test_what_a_user_keeps_at_a_uri_is_not_mixed_into(store, there):
    store.write(there, b"theirs")
    with pytest.raises(UserError, match=f"{URI} is not empty .* and is not a run that mlpt made; name a new folder"):
        start(RunConfig(run_dir=URI))
    assert store.read(there) == b"theirs"
    assert store.read("config.yaml") is None


def test_a_start_that_fails_leaves_its_uri_as_it_was(store):
    def fails():
        with new_run(RunConfig(run_dir=URI)) as run:
            (run.folder / "blocks.json").write_text("{}")
            run.send("blocks.json")
            raise UserError("no such text")

    with pytest.raises(UserError, match="no such text"):
        fails()
    assert store.names("") == []
    assert start(RunConfig(run_dir=URI, seed=3)).remote is not None


def test_a_start_that_another_machine_may_have_under_way_keeps_its_uri(store):
    start(RunConfig(run_dir=URI))
    with pytest.raises(UserError, match="holds a run of another configuration"):
        start(RunConfig(run_dir=URI, seed=3))


def test_a_folder_that_somebody_copied_to_a_uri_is_a_run_there(store):
    store.write("config.yaml", RunConfig(seed=7).to_yaml().encode())
    run, config = open_run(URI)
    assert config.seed == 7
    assert open_run(URI)[0] == run


def test_a_uri_without_a_run_is_one_line(store):
    with pytest.raises(UserError, match=f"{URI} holds no run: it has no config.yaml"):
        open_run(URI)


def rank_main(group, values, blocks, folder, remote):
    """One of several ranks, on a machine of its own: only the blocks and the URI are shared."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/machine-{group.rank}"
    run_rank(RunConfig.model_validate(values), blocks, remote.folder(), group, remote=remote)


@pytest.mark.slow
def test_ranks_on_machines_that_share_no_folder_go_on_from_the_same_checkpoint(small_blocks, machine, tmp_path):
    values = {
        "model": {"hidden_size": 32, "layers": 1, "heads": 2},
        "meta": {"rules": {"mixture": {"rule": "uniform"}}},
        "train": {"steps": 2, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every": 2, "evaluate_batches": 1},
        "report": {"tensorboard": False},
    }
    remote = Remote(f"file://{tmp_path}/bucket/run", "id")
    config = load_settings(RunConfig, values)
    run_rank(config, small_blocks, remote.folder(), Group(), remote=remote)
    longer = load_settings(RunConfig, merge(values, {"train": {"steps": 4}}))
    run_ranks(rank_main, longer.model_dump(), small_blocks, str(tmp_path), remote)
    steps = [line["step"] for line in map(json.loads, (Store(remote.uri).read("metrics.jsonl") or b"").splitlines())]
    assert steps == [0, 2, 4, 4]  # before; logged at the end of each part; after
    for rank in (0, 1):
        fetched = tmp_path / f"machine-{rank}" / "mlpt" / "runs" / remote.folder().name / "checkpoints"
        assert (fetched / "step_00000002" / COMMITTED).is_file()
