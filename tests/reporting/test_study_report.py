"""`mlpt report STUDY`: declared comparisons with their intervals, every measurement, and what is not there."""

import json
import re

import pytest
from made_study import LOSSES, results
from scipy import stats
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.errors import UserError
from mlpt.reporting.report import report_page


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "mixes"
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps(results()))
    return folder


def figures(page: str) -> list[dict]:
    found = re.findall(r'<script type="application/json" id="f\d+-d">(.*?)</script>', page, re.DOTALL)
    return [json.loads(one) for one in found]


def test_a_comparison_is_drawn_with_its_interval_and_told_with_its_verdict(study):
    page = report_page([str(study)])
    gains, losses = figures(page)
    (drawn,) = gains["data"]
    assert drawn["y"] == ["learned lower than uniform"]
    assert drawn["x"] == pytest.approx([0.3])
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5  # the gains' standard deviation is 0.1
    assert drawn["error_x"]["array"] == pytest.approx([half])
    assert "better by 0.300 (an interval)" in page
    assert "not shown: no seed has both values" in page
    single, means = losses["data"]
    assert sorted(single["x"]) == sorted([*LOSSES["learned"], *LOSSES["uniform"]])
    assert means["y"] == ["learned", "uniform"]
    assert "Is a learned mix better?" in page
    assert "1 of 2" in page  # comparisons decided


def test_what_is_not_there_is_listed_and_names_are_no_markup(study):
    page = report_page([str(study)])
    assert "late &lt;b&gt;" in page
    assert "<b> " not in page
    assert "not run yet" in page


def test_one_seed_has_no_interval(study):
    values = results()
    values["comparisons"][0]["gain"] = {"n": 1, "mean": 0.4, "sd": None, "low": None, "high": None}
    (study / "study.json").write_text(json.dumps(values))
    assert "no interval: one seed" in report_page([str(study)])


def test_the_command_writes_it_into_the_study(study):
    result = CliRunner().invoke(app, ["report", str(study)])
    assert result.exit_code == 0, result.output
    assert (study / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_mistakes_are_one_line(study, tmp_path):
    with pytest.raises(UserError, match="is a study: give it alone"):
        report_page([str(study), str(tmp_path / "run")])
    (study / "study.json").write_text('{"cells": ')
    with pytest.raises(UserError, match=r"study\.json cannot be read"):
        report_page([str(study)])
