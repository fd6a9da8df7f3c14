"""Unknown keys find the valid one that was meant, wherever in the tree it stands, and say what it means."""

import re
from typing import Literal

import pytest
from pydantic import Field

from mlpt.config import RunConfig, load_run_config
from mlpt.downstream.config import FinetuneConfig
from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.errors import UserError
from mlpt.setting_names import hint, keys_of
from mlpt.settings import Settings, load_settings


class Deep(Settings):
    """Deep down.

    rate    how much of it; by default
            a tenth. More is too much.
    """

    rate: float = 0.1
    kind: Literal["one", "two"] = "one"


class Top(Settings):
    deep: Deep = Deep()
    optional: Deep | None = None
    size: int = Field(3, description="of the whole")


def test_all_keys_are_there_with_what_they_mean():
    assert {key.name: key.meaning for key in keys_of(Top)} == {
        "deep": "",
        "deep.rate": "how much of it",
        "deep.kind": "one or two",
        "optional": "",
        "optional.rate": "how much of it",
        "optional.kind": "one or two",
        "size": "of the whole",
    }


def test_what_is_always_there_comes_before_what_may_be():
    assert hint(Top, ["rate"], ["deep", "optional", "size"]) == "did you mean 'deep.rate'? (how much of it)"


def test_a_name_deep_inside_comes_after_those_above_it():
    class Around(Settings):
        """Settings with the same ones further in."""

        top: Top = Top()
        the_same_once_more: Deep = Deep()

    found = hint(Around, ["rates"], ["top", "the_same_once_more"])
    assert found == "did you mean 'the_same_once_more.rate'? (how much of it)"


def test_nothing_alike_lists_what_is_valid():
    assert hint(Top, ["zzzz"], ["deep", "size"]) == "valid: deep, size"


@pytest.mark.parametrize("config", [RunConfig, FinetuneConfig, MultitaskConfig])
def test_every_setting_is_found_by_its_last_name_alone(config):
    top = sorted(config.model_fields)
    for key in keys_of(config):
        if key.leaf not in top:
            named = re.findall(r"'([\w.]+)'", hint(config, [key.leaf], top))
            assert named, key
            assert any(name.split(".")[-1] == key.leaf for name in named), (key.name, named)


def test_a_mapping_in_python_may_have_dotted_keys():
    config = load_run_config(None, {"train.steps": 3, "train": {"batch_size": 8}, "objectives.mlm.probability": 0.3})
    assert (config.train.steps, config.train.batch_size, config.objectives["mlm"]["probability"]) == (3, 8, 0.3)
    with pytest.raises(UserError, match=r"unknown setting 'optimizer'; did you mean 'train\.optimizer'\?"):
        load_run_config(None, {"optimizer.lr": 1})
    with pytest.raises(UserError, match=r"did you mean 'train\.optimizer\.lr'\? \(peak learning rate\)"):
        load_run_config(None, {"learning_rate": 1})


def test_an_unknown_key_is_told_of_before_what_is_missing_for_its_sake():
    with pytest.raises(UserError, match=r"unknown setting 'modle'; did you mean 'model'\?"):
        load_settings(FinetuneConfig, {"modle": "x", "tasks": ["sst2"]})
    with pytest.raises(UserError, match="setting 'model': has no default; give it"):
        load_settings(FinetuneConfig, {"tasks": ["sst2"]})
