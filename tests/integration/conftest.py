"""Fixtures of real runs: tiny models on the source text of the standard library, in folders of their own."""

import json
from pathlib import Path

import pytest
from real_runs import TEXT, TINY, Mlpt


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory):
    """A text file of about 150 kB."""
    text = tmp_path_factory.mktemp("text") / "json.txt"
    sources = sorted(Path(json.__file__).parent.glob("*.py")) + sorted(Path(json.__file__).parents[1].glob("c*.py"))
    text.write_text("\n\n".join(source.read_text() for source in sources)[:150_000])
    return text


@pytest.fixture(scope="session")
def tiny(tiny_text):
    """Settings of a run that takes seconds."""
    return [f"data.source={tiny_text}", *TEXT, *TINY]


@pytest.fixture
def mlpt(tmp_path, tmp_path_factory):
    """Run `mlpt WORDS` in a folder of the test; `start` returns the process, `run` its output and exit code."""
    command = Mlpt(tmp_path, tmp_path_factory.getbasetemp() / "cache")
    yield command
    command.close()


@pytest.fixture
def machines(tmp_path):
    """Command lines by the name of the machine, each with a cache of its own."""
    started = {}

    def on(name):
        if name not in started:
            (tmp_path / name).mkdir()
            started[name] = Mlpt(tmp_path / name, tmp_path / name / "cache")
        return started[name]

    yield on
    for mlpt in started.values():
        mlpt.close()
