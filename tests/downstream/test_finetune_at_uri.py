"""Fine-tuning at a URI: what lies there, which machine may go on with it, and what storage that fails costs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from tiny_tasks import own_tasks, saved_encoder

from mlpt.api.finetuning import finetune
from mlpt.downstream.config import FinetuneConfig, cells
from mlpt.errors import UserError
from mlpt.outputs import leased
from mlpt.settings import load_settings
from mlpt.storage.store import StorageError, Store
from mlpt.training.loop import Loop

URI = "flaky://bucket/tuned"
TASKS = {"one_task": ["mood"], "joint": ["mood", "same", "grade"]}
COMMON = {"batch_size": 8, "max_steps": 12, "evaluate_every": 6, "checkpoint_every": 4}
KINDS = {
    "one_task": {"seeds": [1], "learning_rates": [3e-3], "max_length": 16},
    "joint": {"multitask": True, "conditional.max_length": 16, "optimizer.lr": 1e-3, "encoder": "shared"},
}
CELL = "mood/lr0.003-seed1"
INSIDE = {"one_task": CELL, "joint": ""}
RESULT = {"one_task": "result.json", "joint": "results.json"}
FILES = {
    "one_task": {
        *("finetune.yaml", "results.json", "run.json"),
        *(f"{CELL}/{name}" for name in ("cell.json", "metrics.jsonl", "result.json", "predictions_dev.jsonl")),
        *(f"{CELL}/model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")),
    },
    "joint": {
        *("config.json", "results.json", "run.json", "metrics.jsonl"),
        *(f"predictions/{task}_dev.jsonl" for task in TASKS["joint"]),
        *("model/multitask.safetensors", "stock/mood/model.safetensors", "stock/grade/config.json"),
    },
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Become a machine with a cache of its own; called with its name."""

    def become(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    become("first")
    return become


@pytest.fixture
def store(flaky, machine) -> Store:
    return Store(URI)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("at_uri")
    return saved_encoder(folder / "model"), own_tasks(folder)


def fine_tune(kind: str, places: tuple[str, dict], out, **changed):
    settings = {"source": places[1], **COMMON, **KINDS[kind], **changed}
    return finetune(places[0], TASKS[kind], out=out, quiet=True, **settings)


@pytest.fixture(scope="module")
def undisturbed(places, tmp_path_factory) -> dict[str, Path]:
    """The same fine-tunings in folders."""
    folders = {kind: tmp_path_factory.mktemp("local") / kind for kind in KINDS}
    for kind, folder in folders.items():
        fine_tune(kind, places, folder)
    return folders


def files_at(flaky) -> set[str]:
    paths = {path.removeprefix("/bucket/tuned/") for path in flaky.store}
    return {path for path in paths if not path.startswith(".lease")}


def check_same(kind: str, store: Store, undisturbed: Path) -> None:
    """Weights, metrics and scores at the URI are those of the folder, bit for bit."""
    inside = INSIDE[kind]
    name = f"{inside}/model/model.safetensors" if inside else "model/multitask.safetensors"
    ours, theirs = load(store.read(name)), load((undisturbed / name).read_bytes())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    name = f"{inside}/metrics.jsonl" if inside else "metrics.jsonl"
    assert store.read(name) == (undisturbed / name).read_bytes()
    ours, theirs = json.loads(store.read("results.json")), json.loads((undisturbed / "results.json").read_text())
    if kind == "one_task":
        ours, theirs = ours["cells"][0], theirs["cells"][0]
    assert (ours["best"], ours["last"]) == (theirs["best"], theirs["last"])


@pytest.fixture
def never_trains(monkeypatch):
    def refuse():
        def train_step(loop: Loop) -> None:
            raise AssertionError("a finished fine-tuning was trained again")

        monkeypatch.setattr(Loop, "train_step", train_step)

    return refuse


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_lies_at_the_uri_and_any_machine_reads_it_back(
    kind, places, store, flaky, machine, undisturbed, never_trains, tmp_path
):
    result = fine_tune(kind, places, f"{URI}/")
    if kind == "one_task":
        assert result[0].folder == f"{URI}/{CELL}"
    assert files_at(flaky) >= FILES[kind]
    assert not [path for path in files_at(flaky) if "checkpoints" in path]
    assert len(list((tmp_path / "first").rglob("runs/*"))) == 1
    check_same(kind, store, undisturbed[kind])
    never_trains()
    machine("second")
    assert fine_tune(kind, places, URI) == result


def test_another_machine_adds_a_seed_to_the_results_at_the_uri_and_no_other_fine_tuning(places, store, machine):
    (first,) = fine_tune("one_task", places, URI, max_steps=2)
    machine("second")
    with pytest.raises(UserError, match=rf"^{URI}/{CELL} holds a fine-tuning with .* \(batch_size\)"):
        fine_tune("one_task", places, URI, max_steps=2, seeds=[2], batch_size=4)
    (second,) = fine_tune("one_task", places, URI, max_steps=2, seeds=[2])
    assert json.loads(store.read("results.json"))["cells"] == [first.to_json(), second.to_json()]
    assert b"seeds:\n- 2\n" in store.read("finetune.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_another_machine_goes_on_from_the_checkpoint_at_the_uri(
    kind, places, store, flaky, machine, undisturbed, monkeypatch
):
    train_step = Loop.train_step

    def killed(loop: Loop) -> None:
        if loop.step == 10:
            loop.checkpoints.wait()
            raise KeyboardInterrupt
        train_step(loop)

    monkeypatch.setattr(Loop, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(kind, places, URI)
    assert any("checkpoints/step_00000008/COMMITTED" in path for path in files_at(flaky))
    machine("second")
    with pytest.raises(UserError, match=rf"^{URI}.* holds a fine-tuning with other settings or data \(batch_size\)"):
        fine_tune(kind, places, URI, batch_size=4)
    steps: list[int] = []

    def noted(loop: Loop) -> None:
        steps.append(loop.step)
        train_step(loop)

    monkeypatch.setattr(Loop, "train_step", noted)
    fine_tune(kind, places, URI)
    assert steps == [8, 9, 10, 11]
    check_same(kind, store, undisturbed[kind])
    assert not [path for path in files_at(flaky) if "checkpoints" in path]


@pytest.mark.parametrize("kind", KINDS)
def test_storage_that_is_away_when_all_is_done_gets_it_from_the_same_command_later(
    kind, places, store, flaky, undisturbed, never_trains
):
    flaky.fail(on=f"{INSIDE[kind]}/model".lstrip("/"))
    with pytest.raises(UserError, match=r"All of it is in .* the same command there sends it up") as error:
        fine_tune(kind, places, URI)
    assert "\n" not in str(error.value)
    assert f"/bucket/tuned/{INSIDE[kind]}/{RESULT[kind]}".replace("//", "/") not in flaky.store
    flaky.heal()
    never_trains()
    fine_tune(kind, places, URI)
    check_same(kind, store, undisturbed[kind])
    assert files_at(flaky) >= FILES[kind]


def test_storage_that_is_away_while_training_costs_a_warning(places, store, flaky, undisturbed, capsys):
    flaky.fail(on="step_")
    settings = {"source": places[1], **COMMON, **KINDS["one_task"]}
    finetune(places[0], ["mood"], out=URI, **settings)
    assert "step 4 is safe in" in capsys.readouterr().err.replace("\n", " ")
    check_same("one_task", store, undisturbed["one_task"])


def test_an_unreachable_store_is_an_error_of_one_line_before_anything_is_trained(places, store, flaky, never_trains):
    never_trains()
    flaky.fail()
    with pytest.raises(
        StorageError, match=rf"cannot list {URI}/ \(503 Service Unavailable\); check the bucket"
    ) as error:
        fine_tune("one_task", places, URI)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("out", "more", "says"),
    [
        (URI, {"overwrite": True}, f"--overwrite replaces folders of this machine, not {URI}; choose another out"),
        ("nonsense://bucket/x", {}, "nonsense.*use a local path or an installed fsspec protocol"),
        (URI, {"metric": "bleu"}, "has no metric 'bleu'"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(places, store, flaky, tmp_path, out, more, says):
    with pytest.raises(UserError, match=says):
        fine_tune("one_task", places, out, **more)
    assert files_at(flaky) == set()
    assert not list((tmp_path / "first").rglob("runs/*"))


def test_a_place_that_holds_something_else_stays_as_it_is(places, store, flaky):
    store.write("config.yaml", b"a run")
    store.write("run.json", b'{"id": "of a run"}')
    for kind in KINDS:
        with pytest.raises(UserError, match=f"{URI} is not empty .it holds config.yaml. and is not"):
            fine_tune(kind, places, URI)
    assert files_at(flaky) == {"config.yaml", "run.json"}


def test_two_processes_do_not_write_to_one_uri(places, store):
    with leased(store, URI), pytest.raises(UserError, match=f"another process is writing to {URI}"):
        fine_tune("one_task", places, URI)


def test_a_uri_that_nobody_opened_is_refused_in_one_line(places):
    settings = {"model": places[0], "tasks": ["mood"], "source": places[1], "out": URI}
    (cell, *_) = cells(load_settings(FinetuneConfig, settings))
    with pytest.raises(UserError, match=f"{URI} is a URI, which"):
        _ = cell.folder


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"workers": 2, "seeds": [1, 2]}, {"num_workers": 2, "micro_batch_size": 4}])
def test_cells_on_ray_leave_the_same_at_the_uri(places, tmp_path, machine, more):
    """A folder behind a URI: a store that several processes reach."""
    uri = f"file://{tmp_path}/there/tuned"
    more = {"micro_batch_size": 4, **more}
    local = fine_tune("one_task", places, tmp_path / "local", **{**more, "workers": 1, "num_workers": 1})
    ours = fine_tune("one_task", places, uri, **more)
    assert [(one.best, one.last, one.best_step) for one in ours] == [(o.best, o.last, o.best_step) for o in local]
    there = tmp_path / "there" / "tuned"
    for one in ours:
        inside = there / one.folder.removeprefix(f"{uri}/")
        assert json.loads((inside / "result.json").read_text())["best"] == one.best
        assert (inside / "model" / "model.safetensors").is_file()
        assert not (inside / "checkpoints").exists()
    assert [cell["folder"] for cell in json.loads((there / "results.json").read_text())["cells"]] == [
        one.folder for one in ours
    ]
    machine("second")
    assert fine_tune("one_task", places, uri, **more) == ours


@pytest.mark.slow
def test_a_joint_run_of_two_workers_leaves_the_same_at_the_uri(places, tmp_path, machine):
    uri, more = f"file://{tmp_path}/there", {"micro_batch_size": 4, "scoring.precision": "float32"}
    local = fine_tune("joint", places, tmp_path / "local", **more)
    ours = fine_tune("joint", places, uri, num_workers=2, **more)
    assert (ours.last, ours.best_step) == (local.last, local.best_step)
    assert (tmp_path / "there" / "stock" / "mood" / "model.safetensors").is_file()
    machine("second")
    assert fine_tune("joint", places, uri, num_workers=2, **more) == ours
