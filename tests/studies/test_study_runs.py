"""Real studies: killed and gone on with, numbers derived again from the runs' own files, failures that stop nothing."""

import json
import math
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from scipy import stats
from study_files import write
from waiting import wait_until

from mlpt.cli import run
from mlpt.run.launch import pretrain
from mlpt.training.tracker import read_metrics

LONGER = {"budget/steps": 60}  # than it takes to notice the first checkpoint
TWO_AT_ONCE = ["--cores", "2"]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Those that name the folder in their command."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if str(folder) in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.fixture(scope="module")
def study(small_blocks, tmp_path_factory):
    """A study whose first part was killed in the middle of a run, gone on with as a whole: its file, its folder, its
    exit code, and the runs that were unfinished when it was killed."""
    folder = tmp_path_factory.mktemp("study")
    path, out = write(folder, small_blocks, LONGER), folder / "out"
    words = ["study", str(path), "--out", str(out), *TWO_AT_ONCE]
    with open(folder / "said", "w") as said:
        part = ["--cells", "small", "--seeds", "0"]
        killed = subprocess.Popen([sys.executable, "-m", "mlpt", *words, *part], stdout=said, stderr=said)
        wait_until(lambda: killed.poll() is not None or list(out.glob("runs/*/*/checkpoints/*/COMMITTED")))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert killed.returncode == -signal.SIGKILL, (folder / "said").read_text()
    wait_until(lambda: not processes_of(out), timeout=20)
    stood = {one.parent.parent.parent for one in out.glob("runs/*/*/checkpoints/*/COMMITTED")}
    unfinished = [one for one in stood if not (one / "summary.json").is_file()]
    code = run(words)
    return path, out, code, unfinished


def test_a_killed_study_leaves_nothing_running_and_goes_on_inside_its_runs(study, tmp_path):
    _, out, _, unfinished = study
    assert unfinished
    for folder in unfinished:
        log = out / "logs" / folder.relative_to(out).with_name(f"{folder.name}.log")
        assert "resumed at step" in log.read_text()
    folder = unfinished[0]
    asked = out / "asked" / folder.relative_to(out).with_name(f"{folder.name}.yaml")
    undisturbed = pretrain(str(asked), {"run_dir": str(tmp_path / "undisturbed")})
    went_on = json.loads((folder / "summary.json").read_text())
    assert went_on["held_out"] == undisturbed.summary["held_out"]
    evaluated = [
        [(line["step"], line["dev"]) for line in read_metrics(one) if "dev" in line]
        for one in (folder, undisturbed.folder)
    ]
    assert evaluated[0] == evaluated[1]
    assert len(evaluated[0]) == 12


def test_the_tables_numbers_are_those_of_the_runs(study):
    _, out, _, _ = study
    found = json.loads((out / "study.json").read_text())
    page = (out / "study.md").read_text()
    losses = {
        cell: [
            json.loads((out / f"runs/{cell}/seed{seed}/summary.json").read_text())["held_out"]["mlm"] for seed in (0, 1)
        ]
        for cell in ("small", "large")
    }
    for cell, values in losses.items():
        mean, sd = statistics.fmean(values), statistics.stdev(values)
        half = 12.7062047364 * sd / math.sqrt(2)  # t(0.975) with 1 degree of freedom, from tables
        spread = found["cells"][cell]["measurements"]["mlm"]
        assert [spread[key] for key in ("n", "mean", "sd", "low", "high")] == pytest.approx(
            [2, mean, sd, mean - half, mean + half]
        )
        assert f"| {cell} | {mean:.3f} ± {sd:.3f} [{mean - half:.3f}, {mean + half:.3f}] |" in page
    (compared,) = found["comparisons"]
    tested = stats.ttest_rel(losses["small"], losses["large"])
    assert compared["p"] == compared["p_corrected"] == pytest.approx(tested.pvalue)
    assert compared["gain"]["mean"] == pytest.approx(
        statistics.fmean(losses["small"]) - statistics.fmean(losses["large"])
    )
    assert compared["gain"]["low"] == pytest.approx(tested.confidence_interval().low)
    assert compared["verdict"].startswith("better" if tested.pvalue <= 0.05 else "not shown")
    assert compared["verdict"] in page


def test_reached_losses_and_equal_times_are_evaluations_that_were_made(study):
    _, out, _, _ = study
    found = json.loads((out / "study.json").read_text())
    runs = {(cell, seed): out / f"runs/{cell}/seed{seed}" for cell in ("small", "large") for seed in (0, 1)}
    devs = {key: [line for line in read_metrics(folder) if "dev" in line] for key, folder in runs.items()}
    for (cell, seed), lines in devs.items():
        assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
        below = [line["step"] * 4 * 32 for line in lines if line["dev"]["mlm"] <= 6.0]
        run_found = found["cells"][cell]["runs"][str(seed)]
        assert run_found["values"]["to 6"] == (below[0] if below else None)
        assert ("to 6" in run_found["why"]) == (not below)
        assert run_found["values"]["steps"] == 60
    seconds = min(json.loads((folder / "summary.json").read_text())["seconds"] for folder in runs.values())
    assert found["equal_time"]["seconds"] == seconds
    for cell in ("small", "large"):
        last = [[line for line in devs[cell, seed] if line["seconds"] <= seconds][-1] for seed in (0, 1)]
        there = found["equal_time"]["cells"][cell]
        assert there["losses"]["mlm"]["mean"] == pytest.approx(statistics.fmean(one["dev"]["mlm"] for one in last))
        assert there["tokens"]["mean"] == statistics.fmean(one["step"] * 4 * 32 for one in last)


def test_equal_loss_is_where_the_other_cell_ended_between_two_evaluations(study):
    _, out, _, _ = study
    found = json.loads((out / "study.json").read_text())["equal_loss"]
    assert [one["compare"] for one in found] == [["large", "small"]]
    for seed in (0, 1):
        (mine, theirs) = (
            [(line["step"], line["seconds"], line["dev"]["mlm"]) for line in read_metrics(folder) if "dev" in line]
            for folder in (out / f"runs/{cell}/seed{seed}" for cell in ("large", "small"))
        )
        last = theirs[-1]
        at = next(number for number, one in enumerate(mine) if one[2] <= last[2])
        before = mine[max(0, at - 1)]
        part = (before[2] - last[2]) / (before[2] - mine[at][2]) if at else 0
        step, seconds = (before[of] + part * (mine[at][of] - before[of]) for of in (0, 1))
        shares = found[0]["seeds"][str(seed)]
        assert shares == pytest.approx({"tokens": step / last[0], "seconds": seconds / last[1]})
    assert found[0]["tokens"]["mean"] == pytest.approx(
        statistics.fmean(found[0]["seeds"][seed]["tokens"] for seed in "01")
    )
    assert "## Equal loss" in (out / "study.md").read_text()


def test_a_finished_study_is_shown_again_and_its_runs_are_left_alone(study, capsys):
    path, out, code, _ = study
    assert code == 0
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*/*") if file.is_file()}
    assert run(["study", str(path), "--out", str(out), "--seeds", "1"]) == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*/*") if file.is_file()} == before
    assert "# tiny" in capsys.readouterr().out


def test_another_declaration_in_the_same_folder_is_refused(study, small_blocks, tmp_path, capsys):
    _, out, _, _ = study
    changed = write(tmp_path, small_blocks, {**LONGER, "comparisons/0/margin": 0.1})
    before = (out / "study.json").read_bytes()
    assert run(["study", str(changed), "--out", str(out)]) == 2
    assert "has changed: comparisons" in capsys.readouterr().err
    assert (out / "study.json").read_bytes() == before


@pytest.mark.slow
def test_a_cell_that_fails_is_told_and_stops_no_other(small_blocks, tmp_path, capsys):
    broken = {"settings": {"train.optimizer.lr": 1e30}}
    path, out = write(tmp_path, small_blocks, {"cells/broken": broken, "seeds": 1}), tmp_path / "out"
    assert run(["study", str(path), "--out", str(out), *TWO_AT_ONCE]) == 2
    assert "1 of 3 parts have failed, first broken, seed 0: " in capsys.readouterr().err
    found = json.loads((out / "study.json").read_text())
    states = {cell: [one["state"] for one in cells["runs"].values()] for cell, cells in found["cells"].items()}
    assert states == {"small": ["done"], "large": ["done"], "broken": ["failed"]}
    why = found["cells"]["broken"]["runs"]["0"]["why"]["run"]
    assert "not finite" in why
    assert f"* broken, seed 0, run: {why}" in (out / "study.md").read_text()


@pytest.mark.slow
def test_sigterm_stops_a_study_with_checkpoints(small_blocks, tmp_path):
    path, out = write(tmp_path, small_blocks, {"budget/steps": 4000}), tmp_path / "out"
    with open(tmp_path / "said", "w") as said:
        words = ["study", str(path), "--out", str(out), *TWO_AT_ONCE]
        stopped = subprocess.Popen([sys.executable, "-m", "mlpt", *words], stdout=said, stderr=said)
        wait_until(lambda: stopped.poll() is not None or list(out.glob("runs/*/*/checkpoints/*/COMMITTED")))
        stopped.terminate()
        assert stopped.wait(timeout=60) == 143
    told = (tmp_path / "said").read_text().splitlines()[-1]
    assert told == f"mlpt: SIGTERM has stopped the study in {out}; the same command goes on where it was"
    assert not processes_of(out)
    assert any("after step" in log.read_text() for log in out.glob("logs/runs/*/*.log"))


@pytest.mark.slow
def test_cells_start_from_a_cell_and_are_measured_by_commands(small_blocks, tmp_path, capsys):
    """Masks on the weights of the cell that they start from, a probe, a fine-tuning, a pilot; models go in the end."""
    changes = {
        "base/settings/train/evaluate_every": 0,
        "cells": {
            "dense": {"budget": {"steps": 6}},
            "pruned": {"work": "prune", "start": "dense", "grid": {"sparsity": [0.5]}},
            "trained": {
                "start": "dense",
                "settings": {"masks": {"method": "joint", "sparsity": 0.5, "train": ["scores", "weights", "heads"]}},
            },
        },
        "seeds": [3],
        "budget": {"seconds": 1.0, "pilot_steps": 5},
        "keep": "results",
        "measurements": {
            "loss": {"losses": {"weights": "dense", "batches": 1}},
            "density": {"losses": {"weights": "dense", "batches": 1, "figure": "density"}},
            "own loss": {"losses": {"batches": 1}, "cells": ["trained"]},
            "probe": {"evaluate": {"suite": "docs_package", "settings": {"repeats": 2}}, "cells": ["dense", "trained"]},
            "tuned": {
                "finetune": {
                    "tasks": ["docs_package"],
                    "weights": "dense",
                    "settings": {"max_steps": 2, "max_length": 16},
                }
            },
        },
        "comparisons": [{"compare": ["trained", "pruned sparsity=0.5"], "measurement": "loss", "expect": "lower"}],
    }
    path, out = write(tmp_path, small_blocks, changes), tmp_path / "out"
    code = run(["study", str(path), "--out", str(out), *TWO_AT_ONCE])
    assert code == 0, capsys.readouterr().err
    found = json.loads((out / "study.json").read_text())
    runs = {cell: cells["runs"]["3"] for cell, cells in found["cells"].items()}
    assert runs["pruned sparsity=0.5"]["values"]["density"] == pytest.approx(0.5, abs=0.01)
    assert runs["dense"]["values"]["density"] == 1
    assert set(runs["trained"]["values"]) == {"loss", "density", "own loss", "probe", "tuned"}
    assert runs["trained"]["values"]["own loss"] != runs["trained"]["values"]["loss"]
    scores = json.loads((out / "measured/tuned/dense/seed3/results.json").read_text())["cells"]
    assert runs["dense"]["values"]["tuned"] == scores[0]["best"]["dev"][scores[0]["metric"]]
    pilot = json.loads((out / "runs/trained/pilot/summary.json").read_text())
    assert runs["trained"]["costs"]["steps"] == round(1.0 * 5 / pilot["seconds"])
    assert runs["dense"]["costs"]["steps"] == 6
    assert found["comparisons"][0]["verdict"].startswith("not shown: one seed alone")
    assert not (out / "runs/dense/seed3/model").exists()
    assert run(["study", str(path), "--out", str(out)]) == 0  # all is measured; nothing needs the models again
    assert not list(out.glob("runs/*/seed3/checkpoints"))
