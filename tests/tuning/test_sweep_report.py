"""What a sweep leaves and says in the end, from trials as plain values."""

from pathlib import Path

import pytest
from ray import tune

from mlpt.errors import UserError
from mlpt.tuning.ranking import Trial, winning
from mlpt.tuning.report import require_success, write_outcome
from mlpt.tuning.space import Space

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
