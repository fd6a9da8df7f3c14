"""What the pages promise: commands parse, settings are settings, Python compiles, links lead somewhere.

The README has tests of its own (`tests/test_readme.py`), and so have the examples of docs/PYTHON.md.
"""

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mlpt.cli import app
from mlpt.cli_settings import tree_of
from mlpt.config import recipe_names
from mlpt.downstream.command import preset_names
from mlpt.questioning.config import QuestionConfig
from mlpt.setting_list import entries_of
from mlpt.settings import split_words
from mlpt.studies.reading import shipped_studies

ROOT = Path(__file__).resolve().parents[1]
MADE = ("SETTINGS.md", "COMMANDS.md")  # tests/test_reference_pages.py
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name not in MADE)]
COMMANDS = typer.main.get_command(app)


def fenced(text: str, *languages: str) -> list[str]:
    """The blocks of these languages; an indented one is one of commands."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands_in(page: Path) -> list[str]:
    """Every whole `mlpt ...` of the page: in blocks, in indented blocks, and in tables."""
    text = page.read_text()
    blocks = [*fenced(text, "bash"), *re.findall(r"((?:^ {4}\S.*\n)+)", text, flags=re.MULTILINE)]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    cells = [cell for line in text.splitlines() if line.startswith("|") for cell in re.findall(r"`(mlpt [^`]+)`", line)]
    found = [line for line in lines if line.startswith("mlpt ")] + cells
    return [line.replace("\\|", "|") for line in found]


LINES = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands_in(page)]


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The command's path and what its real parser makes of the words. What stands for other words is left out."""
    words = [
        word for word in shlex.split(line, comments=True)[1:] if not re.fullmatch(r"\.{3}|\[.*|.*\]|.*\.{3}", word)
    ]
    command, path = COMMANDS, "mlpt"
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"there is no {path} {name}"
        command, path = command.commands[name], f"{path} {name}"
    assert not [word for word in words if word.startswith("-") and word.split("=")[0] not in options(command)]
    with command.make_context(path, words, resilient_parsing=True) as context:
        return path, context.params


def options(command: Any) -> set[str]:
    return {"--help", *(name for one in command.params for name in (*one.opts, *one.secondary_opts))}


def trees_for(path: str, params: dict[str, Any], key: str) -> list[Any]:
    """The classes of which one has the settings of the command; none: it depends on the study or the suite."""
    name = path.removeprefix("mlpt ")
    if name in ("study", "evaluate"):
        return []
    if name == "question":
        return [QuestionConfig]
    if name == "finetune":
        return [tree_of("multitask" if params["multitask"] else "finetune")]
    if name == "tune":
        of_trials = ("pretrain", "multitask", "finetune")
        return [tree_of(one) for one in (("tune",) if key.startswith("sweep.") else of_trials)]
    return [tree_of(name)]


@cache
def keys(tree: Any) -> list[str]:
    return [entry.key for entry in entries_of(tree)]


def is_setting(tree: Any, key: str) -> bool:
    section = key.removeprefix("sweep.")
    return any(known == section or known.startswith(f"{section}.") for known in keys(tree))


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_parses_and_its_settings_are_settings(page, line):
    if re.search(r"\b[A-Z]+\|", line) or " COMMAND" in line:
        return  # a form, as `mlpt masks compare|distance`
    path, params = parsed(line)
    given = [*(params.get("words") or params.get("sources") or []), *(params.get("settings") or [])]
    names, settings = split_words(given)
    for word in settings:
        key, _, value = word.partition("=")
        trees = trees_for(path, params, key)
        if not re.search(r"\w:[A-Z]\w+", value):  # a class of one's own, tests/test_extending.py
            assert not trees or any(is_setting(tree, key) for tree in trees), word
    known = {"mlpt pretrain": recipe_names(), "mlpt study": [name for name, _ in shipped_studies()]}
    for name in names if path in known else ():
        if name.islower() and not name.endswith(".yaml"):
            assert name in known[path]
    assert params.get("preset") is None or params["preset"] in preset_names()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_and_yaml_of_a_page_can_be_read(page):
    for code in fenced(page.read_text(), "python"):
        ast.parse(code)
    for values in fenced(page.read_text(), "yaml"):
        yaml.safe_load(values)


def test_the_site_has_every_page_once():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert (site["docs_dir"], site["theme"]["font"]) == ("docs", False)
    listed = re.findall(r"[\w/.-]+\.md", str(site["nav"]))
    there = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(there)
    ignored = (ROOT / ".gitignore").read_text().split()
    assert site["site_dir"].split("/")[0] + "/" in ignored


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_what_is_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_errors_that_the_page_explains_are_raised():
    """Each is looked for in the code by its longest part between names and numbers that it was told with."""
    sources = " ".join(path.read_text() for path in sorted((ROOT / "mlpt").rglob("*.py")))
    joined = re.sub(r"\"\s+f?\"", "", sources)
    explained = re.findall(r"\*\*`([^`]+)`", (ROOT / "docs/ERRORS.md").read_text())
    assert len(explained) > 10
    for text in explained:
        part = max(re.split(r"'[^']*'|\d+", text), key=len).strip(" :")
        assert part in joined, text
