"""The study of masks: valid runs, a right table and right correlations, finished cells read back."""

import json

import pytest

from mlpt.bench.mask_study import Study, correlations, table, trained_settings
from mlpt.config import load_run_config
from mlpt.errors import UserError


@pytest.mark.parametrize("method", ["tamt_mlm", "tamt_kd", "tamt_mlm_kd", "joint", "meta"])
def test_every_kind_of_mask_training_is_a_valid_run(method):
    settings, rate = trained_settings(method, 0.7)
    base = {"objectives": {"mlm": {}, "atd": None, "dtd": None, "cse": None}}
    base["meta"] = {"interval": 100, "lag": 0, "rules": {"mixture": {"rule": "fixed", "weights": {"mlm": 1}}}}
    config = load_run_config("mometas", {**base, **settings})
    assert config.masks.sparsity == 0.7
    assert 0 < rate < 1e-2
    with pytest.raises(UserError, match="no method"):
        trained_settings("unheard_of", 0.7)


def cell(method, sparsity, seed, loss, score):
    return {
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
        "mlm_loss": loss,
        "kd_cosine": loss / 10,
        "kd_mse": loss / 5,
        "scores": {"a": score, "b": score + 0.2},
    }


RESULTS = [
    cell("dense", 0.0, 0, 5.0, 0.8),
    cell("x", 0.5, 0, 6.0, 0.6),
    cell("x", 0.5, 1, 6.5, 0.5),
    cell("y", 0.9, 0, 7.0, 0.4),
]


def test_the_table_has_means_over_seeds_and_correlations_leave_the_dense_model_out():
    lines = table(RESULTS, ["a", "b"]).splitlines()
    assert len(lines) == 2 + 3
    assert lines[3].startswith(
        "| 50% | x | 6.250 ± 0.354 |  | 0.625 ± 0.035 | 1.250 ± 0.071 | 55.0 | 75.0 | 65.0 ± 7.1 | 2 |"
    )
    found = correlations(RESULTS)["mlm_loss"]
    assert found["masks"] == 3
    assert found["pearson"] == pytest.approx(-1)


def test_a_finished_cell_is_read_back(tmp_path):
    study = Study("nowhere", tmp_path, 1, 1, None, (), 1, 1e-3)
    (tmp_path / "seed0" / "results").mkdir(parents=True)
    (tmp_path / "seed0" / "results" / "random-0.5.json").write_text(json.dumps(RESULTS[1]))
    assert study.measure("random", 0.5, 0) == RESULTS[1]
