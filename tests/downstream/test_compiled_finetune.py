"""Fine-tuning with torch.compile: the losses, weights and checkpoints of fine-tuning without it, in a few graphs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_tasks import own_tasks, saved_encoder

from mlpt.downstream import work
from mlpt.downstream.cell_run import CellRun
from mlpt.downstream.config import FinetuneConfig, cells
from mlpt.downstream.finetune import run_cell
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.run import run_multitask
from mlpt.errors import UserError
from mlpt.settings import load_settings
from mlpt.training.compiling import why_not_compile
from mlpt.training.loop import Loop
from mlpt.training.tracker import read_metrics

needs_compiler = pytest.mark.skipif(why_not_compile(torch.device("cpu")) is not None, reason="needs a C++ compiler")
COMMON = {"batch_size": 10, "max_steps": 14, "evaluate_every": 7, "checkpoint_every": 4, "keep_model": "last"}
KINDS = {
    "one_task": {"tasks": ["mood"], "seeds": [1], "learning_rates": [3e-3], "max_length": 16},
    "conditional": {"sampler": {"rule": "uniform"}},
    "shared": {"encoder": "shared", "sampler": {"rule": "policy", "interval": 3, "learner": {"rule": "mometas"}}},
}
JOINT = {"tasks": ["mood", "same", "grade"], "conditional": {"max_length": 16}, "optimizer": {"lr": 1e-3}}


class Graphs:
    """A backend of torch.compile that runs what it is given as it is, and counts it."""

    def __init__(self):
        self.made = 0

    def __call__(self, graph, inputs, **options):
        self.made += 1
        return graph.forward


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    """Counts the graphs that fine-tuning makes; a C++ compiler has nothing to do with their number."""
    counter, real = Graphs(), torch.compile
    monkeypatch.setattr(work, "why_not_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda function, **how: real(function, backend=counter, **how))
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, dict]:
    """Where models of 1 and of 2 layers lie, and tasks."""
    folder = tmp_path_factory.mktemp("compiled")
    for layers in (1, 2):
        saved_encoder(folder / str(layers), layers=layers)
    return folder, own_tasks(folder)


def quiet(text: str) -> None:
    pass


def fine_tune(kind: str, places: tuple[Path, dict], out: Path, say=quiet, **changed) -> Path:
    """The folder of what was fine-tuned."""
    model = str(places[0] / ("2" if kind == "conditional" else "1"))
    settings = {"model": model, "source": places[1], "out": str(out), **COMMON, **KINDS[kind], **changed}
    if kind == "one_task":
        (cell,) = cells(load_settings(FinetuneConfig, settings))
        run_cell(cell, say=say)
        return cell.folder
    run_multitask(load_settings(MultitaskConfig, JOINT | settings), say)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


def check_same(plain: Path, ours: Path) -> None:
    """The same dropout, and so the same losses, scores and weights, as far as sums in another order allow."""
    lines = [read_metrics(folder) for folder in (plain, ours)]
    losses = [[line["loss"] for line in of_run if "loss" in line] for of_run in lines]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(losses[0]) == 2
    for one, other in zip(*([line["dev"] for line in of_run if "dev" in line] for of_run in lines), strict=True):
        assert flat(other) == pytest.approx(flat(one), rel=1e-3)
    theirs = weights(plain)
    assert weights(ours).keys() == theirs.keys()
    for name, weight in weights(ours).items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=2e-5)


def flat(scores: dict) -> list[float]:
    return [one for part in scores.values() for one in (flat(part) if isinstance(part, dict) else [part])]


def distinct_shapes(monkeypatch) -> set[tuple[int, ...]]:
    """The shapes of the batches that are trained on from now on."""
    shapes: set[tuple[int, ...]] = set()
    plan = CellRun.plan

    def noted(run: CellRun, step: int):
        parts = plan(run, step)
        shapes.update((len(part.rows), int(run.lengths[part.rows].max())) for part in parts)
        return parts

    monkeypatch.setattr(CellRun, "plan", noted)
    return shapes


def test_lengths_that_change_make_no_more_graphs_and_the_next_cell_makes_none(places, tmp_path, graphs, monkeypatch):
    shapes, parts = distinct_shapes(monkeypatch), {"micro_batch_size": 5, "length_window": 1}
    plain = fine_tune("one_task", places, tmp_path / "plain", **parts)
    assert graphs.made == 0
    ours = fine_tune("one_task", places, tmp_path / "ours", compile=True, **parts)
    assert len(shapes) >= 6
    assert 1 <= graphs.made <= 2, "with padding, and without"
    check_same(plain, ours)
    before = graphs.made
    fine_tune("one_task", places, tmp_path / "ours", compile=True, seeds=[2], **parts)
    assert graphs.made == before


def test_a_compiled_run_goes_on_from_checkpoints_of_a_plain_one_and_the_other_way(
    places, tmp_path, graphs, monkeypatch
):
    whole, train_step = fine_tune("one_task", places, tmp_path / "whole"), Loop.train_step

    def killed(loop: Loop) -> None:
        if loop.step == 9:
            loop.checkpoints.wait()
            raise KeyboardInterrupt
        train_step(loop)

    for first in (False, True):
        out, said = tmp_path / f"compiled first {first}", []
        monkeypatch.setattr(Loop, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            fine_tune("one_task", places, out, compile=first)
        (saved,) = out.rglob("step_00000008/model.safetensors")
        assert not any("_orig_mod" in name for name in load_file(saved))
        monkeypatch.setattr(Loop, "train_step", train_step)
        check_same(whole, fine_tune("one_task", places, out, said.append, compile=not first))
        assert said == ["mood, lr 0.003, seed 1: going on from step 8"]
        assert graphs.made > 0


@pytest.mark.parametrize("kind", ["shared", pytest.param("conditional", marks=pytest.mark.slow)])
def test_a_joint_run_compiles_its_encoder_and_lengths_that_change_make_no_more_graphs(places, tmp_path, graphs, kind):
    plain = fine_tune(kind, places, tmp_path / "plain")
    ours = fine_tune(kind, places, tmp_path / "ours", compile=True)
    assert 1 <= graphs.made <= 2, "of lengths below the longest, and of that"
    check_same(plain, ours)


def test_a_model_that_cannot_be_compiled_is_an_error_of_one_line(places, tmp_path, graphs, monkeypatch):
    def breaks(self, graph, inputs, **options):
        raise NotImplementedError("no kernel\nfor this")

    monkeypatch.setattr(Graphs, "__call__", breaks)
    with pytest.raises(UserError, match=r"cannot compile this model for cpu .*no kernel.*; set compile=false") as error:
        fine_tune("one_task", places, tmp_path, compile=True)
    assert "\n" not in str(error.value)


def test_without_a_compiler_fine_tuning_says_so_and_trains_on(places, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "why_not_compile", lambda device: "there is no C++ compiler (g++ or clang++)")
    said: list[str] = []
    fine_tune("one_task", places, tmp_path, said.append, compile=True)
    assert said == ["compile has no effect: there is no C++ compiler (g++ or clang++)"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_by_inductor_it_trains_like_the_plain_one(places, tmp_path, kind):
    plain = fine_tune(kind, places, tmp_path / "plain")
    check_same(plain, fine_tune(kind, places, tmp_path / "ours", compile=True))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"compile_mode": "max-autotune-no-cudagraphs"}, "set compile=true, or leave it out"),
        ({"compile": True, "compile_mode": "reduce-overhead"}, "records CUDA graphs, one for each shape"),
        ({"compile": True, "compile_mode": "fast"}, "compile_mode"),
    ],
)
@pytest.mark.parametrize("cls", [FinetuneConfig, MultitaskConfig])
def test_what_cannot_work_is_refused(cls, settings, says):
    with pytest.raises(UserError, match=says) as error:
        load_settings(cls, {"model": "m", "tasks": ["sst2"], **settings})
    assert "\n" not in str(error.value)
