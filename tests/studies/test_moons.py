"""The two-moons study, on a fraction of its budget: whole, continued, and what it refuses."""

import io
import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from mlpt.errors import UserError
from mlpt.settings import load_settings
from mlpt.stopping import Stopped
from mlpt.studies.moons.declaration import MoonsStudy
from mlpt.studies.moons.page import differences
from mlpt.studies.moons.picture import SCALE, sheet
from mlpt.studies.moons.pretraining import CellRuns
from mlpt.studies.moons.reading import read_moons
from mlpt.studies.moons.rows import Batches, Rows
from mlpt.studies.moons.run import run_moons

CELLS = {
    "mlm": {"rule": "none"},
    "hard": {"rule": "hard", "query_share": 0.5},
    "masker": {"rule": "masker", "baseline": 0.5, "labels": [20]},
}


def study(**changes):
    values = {
        "work": "two_moons",
        "name": "small",
        "question": "Does it run?",
        "decision": "None.",
        "cells": CELLS,
        "against": "mlm",
        "compare": ["hard"],
        "labels": [10, 20],
        "seeds": 2,
        "steps": 2,
        "epochs": 1,
        "save_every": 1,
        "mode": "plain",
    }
    return load_settings(MoonsStudy, values | changes)


@pytest.fixture(scope="module")
def rows():
    return Rows("used")


def test_the_shipped_study_has_all_cells_at_all_label_counts():
    declared = read_moons("two_moons", ["steps=7"])
    assert declared.steps == 7
    assert set(declared.cells) == {"mlm", "hard", "soft", "soft inputs", "masker"}
    assert all(declared.labels_of(cell) == [10, 20, 40, 80, 160] for cell in declared.cells)
    assert len(declared.seeds) >= 5
    assert read_moons("mixtures") is None


def test_the_shipped_remedies_change_one_thing_of_a_shipped_cell_each():
    cells = read_moons("two_moons").cells
    remedies = read_moons("two_moons_remedies")
    assert [name for name in remedies.cells if name != remedies.against] == remedies.compare
    for name in remedies.compare:
        origin = max((one for one in cells if name.startswith(one)), key=len)
        before, now = cells[origin].model_dump(), remedies.cells[name].model_dump()
        assert sum(before[key] != now[key] for key in before) == 1, name


def test_tokens_that_nothing_has_are_left_out_and_points_are_their_places(rows):
    assert rows.vocabulary.size < 200
    tokens = torch.cat([rows.texts["train"].flatten(), rows.points(10, "grid").tokens.flatten()])
    assert tokens.min() >= 0
    assert tokens.max() == rows.vocabulary.size - 1
    first = rows.points(10, "train")  # the published points
    assert first.places[:2].tolist() == [[13, 45], [55, 38]]
    assert first.moons[:2].tolist() == [0, 1]
    assert first.targets[0].unique().tolist() == [2]
    assert first.targets[1].unique().tolist() == [5]


def test_cells_with_one_seed_see_the_same_texts_and_rows_that_judge_do_not_teach(rows):
    models = [(10, 0), (20, 0), (10, 1)]
    apart = Batches(rows, models, texts=4, labelled=4, query_share=0.5, mlm=False)
    for step in (0, 60):
        batch = apart.taught(step)
        assert torch.equal(batch.text[0], batch.text[1])
        assert not torch.equal(batch.text[0], batch.text[2])
    seen = {"support": set(), "query": set()}
    for step in range(50):
        batch = apart.taught(step)
        for side in seen:
            seen[side] |= {tuple(row) for row in getattr(batch, side).tokens[0].tolist()}
    assert not seen["support"] & seen["query"]
    together = Batches(rows, models, texts=4, labelled=4, query_share=0.0, mlm=True).taught(0)
    support, query = together.support.tokens[0], together.query.tokens[0]
    assert not (support == query).all(dim=1).any()


def test_a_study_that_goes_on_ends_as_one_that_went_through(rows, tmp_path):
    """In two goes, saved between them: bit for bit."""
    whole, parts = study(), study(steps=1)
    for name in CELLS:
        through = CellRuns(whole, name, rows, tmp_path / "whole")
        through.advance(2, lambda: False)
        CellRuns(parts, name, rows, tmp_path / "parts").advance(1, lambda: False)
        went_on = CellRuns(whole, name, rows, tmp_path / "parts")
        assert went_on.steps == 1
        went_on.advance(2, lambda: False)
        labels = 20 if name == "masker" else 10
        assert torch.equal(went_on.students(labels), through.students(labels))
        assert went_on.history == through.history


def test_a_stop_is_heeded_after_the_step_under_way_and_loses_nothing(rows, tmp_path):
    group = CellRuns(study(steps=9), "mlm", rows, tmp_path)
    group.advance(9, lambda: group.steps >= 1)
    assert CellRuns(study(steps=9), "mlm", rows, tmp_path).steps == 1


@pytest.mark.slow
def test_a_whole_study_leaves_tables_and_a_picture_and_refuses_another_declaration(tmp_path):
    results = run_moons(study(), tmp_path / "out", lambda text: None)
    assert set(results["accuracy"]["masker"]) == {20}
    page = (tmp_path / "out" / "study.md").read_text()
    assert page.count("; 61.4") == 2  # the published value beside ours
    assert (tmp_path / "out" / "maps.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["history"]["hard"][0][0] == 2
    with pytest.raises(UserError, match="another 'rate'"):
        run_moons(study(rate=1.0), tmp_path / "out", lambda text: None)


def test_cells_that_are_run_alone_join_the_tables_of_the_others(tmp_path):
    parts = study(labels=[10])
    for name in ("mlm", "hard"):
        found = run_moons(parts, tmp_path / "parts", lambda text: None, [name])
    assert found == run_moons(study(labels=[10], cells=CELLS), tmp_path / "whole", lambda text: None, ["mlm", "hard"])
    longer = run_moons(study(labels=[10], steps=3), tmp_path / "parts", lambda text: None, ["hard"])
    assert set(longer["accuracy"]) == {"hard"}  # the other one has not taken the third step


def test_differences_are_corrected_over_all_that_are_declared():
    values = {"mlm": [0.5, 0.6, 0.7, 0.6], "hard": [0.6, 0.75, 0.8, 0.65]}
    here = {name: {10: {"best": accuracies}} for name, accuracies in values.items()}
    p = stats.ttest_rel(values["hard"], values["mlm"]).pvalue
    declared = study(seeds=4, compare=["hard", "masker"])  # of the masker at 20 labels
    *_, hard, masker = differences(declared, here)
    assert f"p {3 * p:.2f} | - |" in hard
    assert masker == "| masker | - | - |"


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves_also_where_they_are_stopped(rows, tmp_path):
    def stop_once(text):
        if "% of the steps" in text and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            signal.raise_signal(signal.SIGTERM)

    long = study(steps=40)
    with pytest.raises(Stopped) as stopped:
        run_moons(long, tmp_path / "two", stop_once, cores=2)
    assert stopped.value.exit_code == 143
    assert sum(CellRuns(long, name, rows, tmp_path / "two" / "cells").steps for name in CELLS) < 3 * 40
    two = run_moons(long, tmp_path / "two", stop_once, cores=2)
    one = run_moons(long, tmp_path / "one", lambda text: None)
    assert two["accuracy"] == one["accuracy"]
    for name in CELLS:
        ours, theirs = (CellRuns(long, name, rows, tmp_path / folder / "cells") for folder in ("two", "one"))
        assert ours.steps == theirs.steps == 40
        assert ours.history == theirs.history
        labels = 20 if name == "masker" else 10
        assert torch.equal(ours.students(labels), theirs.students(labels))


def test_the_folder_of_a_study_that_was_stopped_is_gone_on_with(tmp_path):
    def stop_soon(text):
        if "% of the steps" in text:
            signal.raise_signal(signal.SIGINT)

    for _ in range(2):
        with pytest.raises(Stopped):
            run_moons(study(steps=9), tmp_path / "out", stop_soon, ["mlm"])
    assert CellRuns(study(steps=9), "mlm", Rows("used"), tmp_path / "out" / "cells").steps == 2  # one each time


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": [30]}, "two moons has 10, 20, 40, 80, 160 labels"),
        ({"against": "none"}, "there is no cell 'none'"),
        ({"cells": {"mlm": {"rule": "masker", "entropy": 1}}}, "a masker has no entropy bonus"),
        ({"cells": {"mlm": {"rule": "hard", "inner_steps": 3}}}, "set support_steps"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_read(changes, says):
    with pytest.raises(UserError, match=says):
        study(**changes)


def test_a_map_is_drawn_upwards_in_the_colours_of_the_moons():
    left = np.zeros((64, 64))
    left[:, 32:] = 1.0  # the right half says moon 1
    content = sheet({"one": {10: left}}, {10: np.array([[0, 0, 1]])}, [10])
    image = Image.open(io.BytesIO(content))
    width, height = image.size
    assert (image.format, image.mode) == ("PNG", "RGB")
    assert (width, height) == (64 * SCALE + 8, 64 * SCALE + 8)
    pixels = np.asarray(image).astype(int)
    blue, red = pixels[8, 8], pixels[8, width - 8]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    dot = pixels[height - 5, 4]  # the point at x 0, y 0 is of moon 1: lower left
    assert dot[0] > dot[2]
