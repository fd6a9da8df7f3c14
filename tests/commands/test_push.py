"""`mlpt push`: what would go to the hub is listed without a network; what goes there is that."""

import json
import socket
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner

from mlpt.api.pushing import push
from mlpt.cli import app
from mlpt.errors import UserError


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A model with a card, beside what must not go anywhere."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "README.md").write_text("# A card\n")
    (folder / ".secret").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache/one").write_text("x")
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refused(*args, **more):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)


class Hub:
    """What is called of the hub's client."""

    def __init__(self):
        self.calls: list[tuple[str, dict]] = []

    def create_repo(self, repo, **how):
        self.calls.append((repo, how))
        return f"https://hub.test/{repo}"

    def upload_folder(self, **how):
        self.calls.append((how.pop("repo_id"), how))


def test_a_dry_run_lists_every_file_and_sends_nothing(model, no_network):
    result = CliRunner().invoke(app, ["push", str(model), "somebody/encoder", "--dry-run"])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    listed = {name: int(size.replace(",", "")) for size, name in (line for line in lines if len(line) == 2)}
    assert listed == {file.name: file.stat().st_size for file in model.iterdir() if not file.name.startswith(".")}
    assert "would go to somebody/encoder" in result.stdout
    assert "warning" not in result.output


def test_a_push_makes_the_repository_and_uploads_what_was_listed(model, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    made = push(model, "somebody/encoder", private=True)
    assert made["url"] == "https://hub.test/somebody/encoder"
    (first, asked), (second, sent) = hub.calls
    assert (first, asked) == ("somebody/encoder", {"private": True, "exist_ok": True})
    assert second == "somebody/encoder"
    left = huggingface_hub.utils.filter_repo_objects(
        [path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()],
        ignore_patterns=sent["ignore_patterns"],
    )
    assert set(left) == set(made["files"])


def test_files_that_name_this_machine_are_told(model, no_network):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"from": f"{model.parent}/run"}))
    told: list[str] = []
    push(model, "somebody/encoder", dry_run=True, say=told.append)
    assert told == ["warning: config.json names a folder of this machine; look at it before others do"]


@pytest.mark.parametrize(
    ("repo", "says"),
    [("some body/encoder", "is no name of a repository"), ("somebody/encoder", "holds no model to push")],
)
def test_mistakes_are_one_line(repo, says, tmp_path, no_network):
    with pytest.raises(UserError, match=says) as error:
        push(tmp_path, repo, dry_run=True)
    assert "\n" not in str(error.value)
