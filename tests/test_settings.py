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
    tuned: Inner = Inner(steps=9)
    name: str = "x"
    component: Annotated[First | Second, Field(discriminator="rule")] = First()


def test_an_unknown_key_names_the_nearest_valid_one():
    with pytest.raises(
        UserError, match=r"unknown setting 'inner\.learnin_rate'; did you mean 'inner\.learning_rate'\?"
    ):
        load_settings(Outer, {"inner": {"learnin_rate": 1}})


def test_an_unknown_key_like_no_other_lists_the_valid_ones():
    with pytest.raises(UserError, match="valid: component, inner, name, tuned"):
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


def test_a_component_that_is_given_in_part_keeps_the_rest_of_its_fields_own_default():
    assert load_settings(Outer, {"tuned": {"learning_rate": 0.5}}).tuned == Inner(learning_rate=0.5, steps=9)
    assert load_settings(Outer, {"inner": {"learning_rate": 0.5}}).inner == Inner(learning_rate=0.5, steps=5)
    assert load_settings(Outer, {"component": {"rule": "second"}}).component == Second()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    with pytest.raises(UserError, match=r"setting 'inner\.learning_rate'.*finite"):
        load_settings(Outer, {"inner": {"learning_rate": value}})


def test_a_mapping_of_names_on_the_command_line_replaces_and_a_dotted_key_changes_one_of_them():
    base = {"objectives": {"mlm": {"probability": 0.15}, "cse": {}}}

    def laid(*words):
        return merge(base, parse_overrides(words, whole=("objectives",)))["objectives"]

    assert laid("objectives={mlm: {}}") == {"mlm": {}}
    assert laid("objectives={mlm: {}}", "objectives.mlm.probability=0.3") == {"mlm": {"probability": 0.3}}
    assert laid("objectives.mlm.probability=0.3") == {"mlm": {"probability": 0.3}, "cse": {}}
    assert laid("objectives.cse=", "objectives={dtd: {}}") == {"dtd": {}}
