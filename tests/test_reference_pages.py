"""The reference pages of settings and commands say what the classes and commands say now."""

from pathlib import Path

import pytest

from mlpt.config import RunConfig
from mlpt.reference import pages
from mlpt.setting_names import keys_of

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("name", ["SETTINGS.md", "COMMANDS.md"])
def test_a_page_is_current(name):
    assert (DOCS / name).read_text() == pages()[name], "make it anew by `python -m mlpt.reference`"


def test_every_key_and_command_has_its_line():
    made = pages()
    assert all(f"| `{key.name}` |" in made["SETTINGS.md"] for key in keys_of(RunConfig))
    for command in ("pretrain", "report RUN|SWEEP|STUDY...", "masks compare", "hard-tokens show"):
        assert f"## mlpt {command}" in made["COMMANDS.md"]
