"""The set-up: constraints.txt pins what pyproject.toml asks for, and nothing that depends on the machine."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]


def lines() -> list[str]:
    text = (ROOT / "constraints.txt").read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins() -> dict[str, Version]:
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines())}


def test_every_constraint_is_one_exact_version():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", line) for line in lines())
    names = [line.partition("==")[0] for line in lines()]
    assert names == sorted(set(names))


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_each_requirement_has_a_constraint_in_its_range(text: str):
    requirement = Requirement(text)
    if requirement.name == "torch":
        assert "torch" not in pins()  # the Makefile installs the build that fits the machine
    else:
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_make_installs_torch_first_and_alone_and_all_of_it_under_the_constraints():
    recipe = (ROOT / "Makefile").read_text()
    installed = re.findall(r"^\t(.*(?:PIP\)|pip install).*)$", recipe, re.MULTILINE)
    assert [line.removeprefix("$(PIP) ") for line in installed] == [
        "--upgrade pip",
        f'"{next(one for one in REQUIREMENTS if one.startswith("torch"))}"',
        '--editable ".[dev]"',
        f'$(DOCS)/bin/python -m pip install --quiet $(CONSTRAINTS) "{EXTRAS["docs"][0]}"',
    ]
    assert re.search(r"^PIP := .* \$\(CONSTRAINTS\)$", recipe, re.MULTILINE)
    assert re.search(r"^CONSTRAINTS \?= --constraint constraints.txt$", recipe, re.MULTILINE)


def test_refreshed_constraints_leave_out_what_depends_on_the_machine():
    spec = importlib.util.spec_from_file_location("refresh", ROOT / ".ci" / "constraints.py")
    assert spec is not None
    assert spec.loader is not None
    refresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(refresh)
    listed = "torch==2.13.0+cpu\nPy_YAML==6.0\nnvidia-cublas-cu12==12.8\ntriton==3.5\nmlpt==0.1.0\naiohttp==3.14\n\n"
    text = refresh.constraints(listed)
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["aiohttp==3.14", "py-yaml==6.0"]
