"""What a sweep leaves and says in the end, from trials as plain values."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import parquet
from ray import tune

from mlpt.errors import UserError
from mlpt.reporting.sweeps import read_sweep
from mlpt.tuning.ranking import Trial, winning
from mlpt.tuning.report import require_success, write_outcome
from mlpt.tuning.space import Space
from mlpt.tuning.sweep import start_sweep

SPACE = Space({"lr": tune.uniform(0, 1)}, {"loss": "min"}, tokens=1, trials=1, name="mine", question="Which?")


def trial(lr: float, seed: int, loss: float, error: str | None = None) -> Trial:
    status = "failed" if error else "finished"
    return Trial(f"{lr}-{seed}", {"lr": lr}, {"lr": lr}, seed, {"loss": loss}, 1, 1.0, status, error, "")


def outcome(folder: Path, trials: list[Trial]) -> tuple[str, list[str]]:
    said: list[str] = []
    write_outcome(folder, SPACE, trials, winning(trials, SPACE.metrics), ["a: 1\n"], "next {}", said.append)
    best = folder / "best.yaml"
    return best.read_text() if best.is_file() else "", said


def test_one_seed_has_no_spread(tmp_path, capsys):
    recipe, _ = outcome(tmp_path, [trial(0.5, 0, 1.25)])
    assert "# loss 1.2500 over 1 seed: lr=0.5" in recipe
    assert "±" not in recipe
    assert "1.2500 ±" not in capsys.readouterr().err


def test_two_seeds_have_one(tmp_path, capsys):
    recipe, _ = outcome(tmp_path, [trial(0.5, 0, 1.0), trial(0.5, 1, 2.0)])
    assert "# loss 1.5000 ± 0.7071 over 2 seeds" in recipe
    assert "1.5000 ± 0.7071" in capsys.readouterr().err


def test_a_sweep_whose_every_trial_failed_is_an_error(tmp_path):
    failed = [trial(0.5, 0, 0.0, "the loss was not finite"), trial(0.7, 0, 0.0, "no memory")]
    outcome(tmp_path, failed)
    with pytest.raises(UserError) as error:
        require_success(failed, tmp_path)
    assert "every trial failed (2 of 2), the first with: the loss was not finite" in str(error.value)
    assert str(tmp_path / "trials.parquet") in str(error.value)


def test_one_success_is_enough(tmp_path):
    require_success([trial(0.5, 0, 0.0, "no memory"), trial(0.7, 0, 1.0)], tmp_path)


def test_a_parameter_of_several_types_is_a_column_of_json(tmp_path):
    choices = ["none", 0.1, True, [0.5, 1]]
    trials = [replace(trial(0.5, seed, 1.0), point={"a": one, "b": seed or 0.5}) for seed, one in enumerate(choices)]
    outcome(tmp_path, trials)
    table = parquet.read_table(tmp_path / "trials.parquet").to_pydict()
    assert [json.loads(one) for one in table["parameter/a"]] == choices
    assert table["parameter/b"] == [0.5, 1, 2, 3]
    (tmp_path / "sweep.yaml").write_text("space: mine\n")
    assert [row.parameters["a"] for row in read_sweep(str(tmp_path)).trials] == table["parameter/a"]


def test_recipes_are_there_before_the_table(tmp_path):
    (tmp_path / "trials.parquet").mkdir()
    with pytest.raises(IsADirectoryError):
        outcome(tmp_path, [trial(0.5, 0, 1.25)])
    assert (tmp_path / "best.yaml").is_file()


def test_commands_can_be_copied_from_a_sweep_with_spaces_in_its_path(tmp_path):
    folder = tmp_path / "my sweep's folder"
    (folder / "trials" / "one").mkdir(parents=True)
    _, said = outcome(folder, [trial(0.5, 0, 1.25)])
    assert shlex.split(said[-1]) == ["next:", "next", str(folder / "best.yaml")]
    (folder / "sweep.yaml").touch()
    with pytest.raises(UserError) as error:
        start_sweep("optimiser", [f"sweep.folder={folder}"], print)
    assert shlex.split(str(error.value).split("`")[1]) == ["mlpt", "tune", "--resume", str(folder)]
