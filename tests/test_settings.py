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


class Kinds(Settings):
    mix: Literal["even", "learned"] | dict[str, float] | None = None
    sources: dict[str, str | list[str]] | None = None
    workers: int | tuple[int, int] = 1
    several: tuple[Inner, ...] | Inner = ()
    components: dict[str, Annotated[First | Second, Field(discriminator="rule")]] = Field(default_factory=dict)
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mix": "learnt"}, "setting 'mix': Input should be 'even' or 'learned' (got 'learnt')"),
        ({"mix": {"a": "much"}}, "setting 'mix.a': Input should be a valid number, unable to parse"),
        ({"mix": {"a": float("nan")}}, "setting 'mix.a': Input should be a finite number (got nan)"),
        ({"mix": {1: 0.5}}, "setting 'mix': YAML reads a name as 1, and names are texts; quote it"),
        ({"sources": {2024: "a.txt"}}, "setting 'sources': YAML reads a name as 2024, and names are texts; quote it"),
        ({"sources": {"str": [3]}}, "setting 'sources.str.0': Input should be a valid string (got 3); quote it"),
        ({None: 3}, "YAML reads a name as None, and names are texts"),
        ({"workers": "x"}, "setting 'workers': Input should be a valid integer"),
        ({"workers": [1, "x"]}, "setting 'workers.1': Input should be a valid integer"),
        ({"workers": [1, 2, 3]}, "setting 'workers': Tuple should have at most 2 items, not 3"),
        ({"several": [{"steps": "x"}]}, "setting 'several.0.steps': Input should be a valid integer"),
        ({"several": {"steps": "x"}}, "setting 'several.steps': Input should be a valid integer"),
        ({"several": [{"stepz": 1}]}, "unknown setting 'several.0.stepz'; valid: learning_rate, steps"),
        ({"components": {"a": {"rule": "first", "gamma": "x"}}}, "setting 'components.a.gamma': Input should be"),
        ({"names": 3}, "setting 'names': needs a list, as in [a, b] (got 3)"),
        ({"names": [False]}, "(got False); quote it for YAML, on a command line as '\"no\"'"),
        ({"names": 1 << 20000}, "setting 'names': needs a list, as in [a, b] (got a int)"),
    ],
)
def test_a_setting_of_several_kinds_is_named_as_people_write_it(values, says):
    with pytest.raises(UserError) as error:
        load_settings(Kinds, values)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{no: 1}", "key: YAML reads a name as False; quote it, as in 'no' or 'off'"),
        ("{a: [{on: 1}]}", "key.a.0: YAML reads a name as True; quote it, as in 'yes' or 'on'"),
        ("&x {a: *x}", "key.a holds itself, by an alias (*) of YAML; write it out"),
        (3000 * "[", "the value of key cannot be read as YAML"),
        ("!!bool perhaps", "the value of key cannot be read as YAML: '!!bool perhaps'; quote it"),
    ],
)
def test_a_value_that_yaml_cannot_mean_is_one_line(text, says):
    with pytest.raises(UserError) as error:
        parse_overrides([f"key={text}"])
    assert str(error.value).startswith(says)
    assert len(str(error.value)) < 300


def test_an_alias_may_stand_in_several_places():
    assert parse_overrides(["key=[&x {a: 1}, *x, {b: *x}]"]) == {"key": [{"a": 1}, {"a": 1}, {"b": {"a": 1}}]}
