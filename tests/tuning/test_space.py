"""Search spaces: the shipped ones hold together, and a user's own file is read or refused in one line."""

import sys

import pytest
from ray import tune

from mlpt.errors import UserError
from mlpt.tuning.space import Space, load_space, shipped_spaces

MINE = '''"""Does a larger step help?"""
from ray import tune
from mlpt.tuning.space import Space
lr = tune.loguniform(1e-4, 1e-2)
space = Space(parameters={"train.optimizer.lr": lr}, metrics={"dev/mlm": "min"}, tokens=9, trials=2)
'''


def space(**changes):
    fields = {"parameters": {"x": tune.uniform(0, 1)}, "metrics": {"dev/mlm": "min"}, "tokens": 10, "trials": 1}
    return Space(**{**fields, **changes})


def test_every_shipped_space_asks_a_question_and_states_its_budget():
    for one in shipped_spaces():
        assert "?" in one.question, one.name
        assert one.tokens > 0


def test_a_users_own_file_is_a_space(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    loaded = load_space(str(path))
    assert (loaded.name, loaded.question, loaded.tokens) == ("mine", "Does a larger step help?", 9)
    assert [one.name for one in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE.split("\n", 1)[1], "no docstring"),
        ('"""Why?"""', "defines no `space"),
        ('"""Why?"""\n1 / 0', "ZeroDivisionError"),
    ],
)
def test_a_file_that_is_no_space_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        load_space(str(path))
    assert "\n" not in str(refused.value)


def test_an_unknown_name_lists_the_shipped_spaces():
    with pytest.raises(UserError, match="shipped: optimiser"):
        load_space("optimizer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {}}, "needs metrics"),
        ({"metrics": {"a": "least"}}, "min"),
        ({"search": "bayes"}, "valid: random, grid, tpe"),
        ({"scheduler": "median"}, "valid: none, asha"),
        ({"tokens": 0}, "at least 1"),
        ({"parameters": {}}, "no parameters"),
        ({"search": "grid"}, "needs a tune.grid_search"),
        ({"search": "tpe", "parameters": {"x": tune.grid_search([1])}}, "tpe cannot walk the grid"),
        ({"metrics": {"a": "min", "b": "max"}, "scheduler": "asha"}, "use scheduler=none"),
        ({"metrics": {"latency": "min"}, "scheduler": "asha"}, "measured when a trial ends"),
        ({"job": "finetune"}, "valid: pretrain, multitask"),
        ({"scheduler": "pbt", "search": "tpe"}, "its own search"),
        ({"scheduler": "pbt", "seeds": 2}, "its own search"),
        ({"scheduler": "pbt"}, "needs `mutable`"),
        ({"scheduler": "pbt", "mutable": ("y",)}, "not one: y"),
        ({"first": ({"y": 1},)}, "parameters that there are not: y"),
        ({"first": ({"x": 1},), "search": "grid", "parameters": {"x": tune.grid_search([1])}}, "leave out `first`"),
    ],
)
def test_a_space_that_no_sweep_could_run_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        space(**changes)
