"""A component is found by its short name or by its path; whatever is wrong with a name is told in one line."""

import sys

import pytest

from mlpt.errors import UserError
from mlpt.registry import find_class


class Shape:
    """The base."""


class Square(Shape):
    """One that is registered."""


class Circle(Shape):
    """Another."""


REGISTERED = {"square": Square, "circle": Circle}


def find(name):
    return find_class(name, REGISTERED, Shape, "shape")


def test_a_short_name_is_the_registered_class():
    assert find("square") is Square
    assert find("circle") is Circle


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """A package that a user brings, as a file on the path."""
    folder = tmp_path / "brought_shapes"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "more.py").write_text(
        f"from {__name__} import Shape\n\nclass Star(Shape):\n    pass\n\nclass Word:\n    pass\n\nSIZE = 3\n"
    )
    (folder / "torn.py").write_text("import no_such_package_at_all\n")
    (folder / "mistyped.py").write_text("class Star(:\n")
    (folder / "failing.py").write_text("raise RuntimeError('needs a licence\\nand a key')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "brought_shapes.more"
    for name in [name for name in sys.modules if name.startswith("brought_shapes")]:
        del sys.modules[name]


def test_a_path_is_the_class_in_that_module(brought):
    found = find(f"{brought}:Star")
    assert (found.__module__, found.__name__) == (brought, "Star")
    assert issubclass(found, Shape)


def test_the_base_itself_and_a_registered_class_have_paths_too():
    assert find(f"{__name__}:Circle") is Circle
    assert find(f"{__name__}:Shape") is Shape


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("squar", "there is no shape 'squar'; did you mean 'square'? (your own: package.module:Class)"),
        ("zzz", "there is no shape 'zzz'; there are square, circle (your own: package.module:Class)"),
        ("", "there is no shape ''; there are square, circle"),
        ("brought_shapes.more:Sta", "shape 'brought_shapes.more:Sta': brought_shapes.more has no Sta"),
        ("brought_shapes.more:Word", "is not a subclass of"),
        ("brought_shapes.more:SIZE", "is not a subclass of"),
        ("brought_shapes.less:Star", "cannot import brought_shapes.less (No module named 'brought_shapes.less')"),
        ("brought_shapes.torn:Star", "cannot import brought_shapes.torn (No module named 'no_such_package_at_all')"),
        ("brought_shapes.mistyped:Star", "cannot import brought_shapes.mistyped (SyntaxError: invalid syntax"),
        (
            "brought_shapes.failing:Star",
            "cannot import brought_shapes.failing (RuntimeError: needs a licence and",
        ),
        ("nowhere:Star", "cannot import nowhere (No module named 'nowhere'); is it on PYTHONPATH?"),
        (":Star", "shape ':Star'"),
        ("brought_shapes.more:", "shape 'brought_shapes.more:'"),
        ("a folder/file.py:Star", "cannot import a folder/file.py"),
        (".relative:Star", "shape '.relative:Star'"),
    ],
)
@pytest.mark.usefixtures("brought")
def test_a_wrong_name_is_one_line(name, says):
    with pytest.raises(UserError) as error:
        find(name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
