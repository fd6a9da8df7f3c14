"""What the README promises: its Python example runs, its commands exist, its settings are settings."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.config import load_run_config
from mlpt.settings import merge, parse_overrides
from mlpt.tasks import TaskSource, load_task, read_task_file

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_runs(tmp_path, monkeypatch, small_blocks):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    # The README's run trains 200 steps on 8 MB of text; the same lines, on less of both.
    small = example.replace('"steps": 200', f'"steps": 4}}, "data": {{"source": {small_blocks!r}')
    assert small != example
    names: dict = {}
    exec(compile(small, "README.md", "exec"), names)
    assert names["run"].summary["steps"] == 4
    assert (names["run"].folder / "model/config.json").is_file()


def test_the_task_file_describes_a_task(tmp_path):
    (example,) = blocks("yaml")
    (tmp_path / "mood.yaml").write_text(example)
    for split in ("train", "dev"):
        (tmp_path / f"mood_{split}.csv").write_text("text,mood\nfine,good\nwet,bad\n")
    source = TaskSource(own=read_task_file(str(tmp_path / "mood.yaml")))
    data = load_task("mood", source)
    assert [(row.first, data.task.labels[row.label]) for row in data.splits["dev"]] == [
        ("fine", "good"),
        ("wet", "bad"),
    ]


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    in_blocks = [line for line in lines if line.startswith("mlpt ")]
    in_table = re.findall(r"^\| `(mlpt [^`]+)`", README, flags=re.MULTILINE)
    return in_blocks + in_table


@pytest.mark.parametrize("line", commands())
def test_a_command_exists(line):
    name = shlex.split(line)[1]
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("mlpt pretrain")])
def test_the_settings_of_a_command_are_settings(line):
    words = [word for word in shlex.split(line)[2:] if re.match(r"^[a-z_.]+=", word)]
    assert load_run_config(None, parse_overrides(words)).train.steps > 0


@pytest.mark.parametrize("word", re.findall(r"`([a-z_]+(?:\.[a-z_]+)*=[^`]*)`", README))
def test_a_setting_in_the_text_is_a_setting(word):
    for one in word.split(" ") if "{" not in word and "[" not in word else [word]:
        key, _, text = one.partition("=")
        if not text.isupper():  # FOLDER and the like stand for something
            assert load_run_config(None, merge({"meta": {"lag": 0}}, parse_overrides([f"{key}={text}"]))).objectives
