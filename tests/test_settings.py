"""Settings: strict keys with the nearest valid one, overrides as YAML, and components that replace each other whole."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from mlpt.errors import UserError
from mlpt.settings import Settings, load_settings, merge, parse_overrides


class Inner(Settings):
    learning_rate: float = 0.1
    steps: int = 5


class First(Settings):
    rule: Literal["first"] = "first"
    gamma: float = 2.0


class Second(Settings):
    rule: Literal["second"] = "second"


class Outer(Settings):
    inner: Inner = Inner()
    name: str = "x"
    component: Annotated[First | Second, Field(discriminator="rule")] = First()


def test_an_unknown_key_names_the_nearest_valid_one():
    with pytest.raises(
        UserError, match=r"unknown setting 'inner\.learnin_rate'; did you mean 'inner\.learning_rate'\?"
    ):
        load_settings(Outer, {"inner": {"learnin_rate": 1}})


def test_an_unknown_key_like_no_other_lists_the_valid_ones():
    with pytest.raises(UserError, match="valid: component, inner, name"):
        load_settings(Outer, {"zzzzzz": 1})


def test_a_wrong_type_names_the_key_and_the_value():
    with pytest.raises(UserError, match=r"setting 'inner\.steps'.*got 'many'"):
        load_settings(Outer, {"inner": {"steps": "many"}})


def test_a_components_settings_are_named_as_people_write_them():
    with pytest.raises(UserError, match=r"unknown setting 'component\.gama'; did you mean 'component\.gamma'\?"):
        load_settings(Outer, {"component": {"rule": "first", "gama": 1}})
    with pytest.raises(UserError, match=r"setting 'component\.gamma'.*got 'much'"):
        load_settings(Outer, {"component": {"rule": "first", "gamma": "much"}})
    with pytest.raises(UserError, match=r"unknown setting 'component\.gamma'; valid: rule"):
        load_settings(Outer, {"component": {"rule": "second", "gamma": 1}})


def test_every_error_is_one_line():
    for values in ({"inner": {"steps": "many"}}, {"inner": 3}, {"nme": 1}):
        with pytest.raises(UserError) as error:
            load_settings(Outer, values)
        assert "\n" not in str(error.value)


def test_overrides_are_yaml_and_nest_by_dots():
    assert parse_overrides(["a.b=3e-4", "a.c=[x, y]", "d=true", "e=", "f=a=b"]) == {
        "a": {"b": 3e-4, "c": ["x", "y"]},
        "d": True,
        "e": None,
        "f": "a=b",
    }


@pytest.mark.parametrize("word", ["novalue", "=3"])
def test_a_word_without_a_key_and_a_value_is_refused(word):
    with pytest.raises(UserError, match="key=value"):
        parse_overrides([word])


def test_overrides_are_laid_on_the_base_key_by_key():
    assert merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}}


def test_another_rule_drops_the_settings_of_the_one_before():
    base = {"mixture": {"rule": "mometas", "gamma": 2}}
    assert merge(base, {"mixture": {"rule": "uniform"}}) == {"mixture": {"rule": "uniform"}}
    assert merge(base, {"mixture": {"gamma": 1}}) == {"mixture": {"rule": "mometas", "gamma": 1}}
