"""Datasets and models of the hub: whole files whoever asks, and one line soon where the hub does not answer."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq

from mlpt.data import hub

ROOT = Path(hub.__file__).parents[2]

# The process writes half of the file, says so, and goes on when its standard input is closed.
_SLOW_WRITER = """
import io, sys, datasets
from mlpt.data.hub import download
def halfway(dataset, path):
    whole = io.BytesIO()
    to_parquet(dataset, whole)
    raw = whole.getvalue()
    with open(path, "wb") as file:
        file.write(raw[: len(raw) // 2])
        file.flush()
        print("half", flush=True)
        sys.stdin.read()
        file.write(raw[len(raw) // 2 :])
to_parquet, datasets.Dataset.to_parquet = datasets.Dataset.to_parquet, halfway
datasets.load_dataset = lambda *_: {"train": datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(1000)]})}
print(*download("hub:someone/something"))
"""
_SECOND = """
import datasets
from mlpt.data.hub import download
def again(*_):
    raise SystemExit("fetched twice")
datasets.load_dataset = again
print("asking", flush=True)
print(*download("hub:someone/something"))
"""


def started(program: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_that_ask_for_one_dataset_fetch_it_once_and_never_see_half_a_file() -> None:
    first = started(_SLOW_WRITER)
    assert first.stdout is not None
    assert first.stdout.readline() == "half\n"
    cache = Path(os.environ["XDG_CACHE_HOME"])
    assert list(cache.rglob("*.parquet")) == []
    second = started(_SECOND)
    assert second.stdout is not None
    assert second.stdout.readline() == "asking\n"
    for process in (first, second):
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
        assert pq.read_table(printed.strip())["text"].to_pylist() == [f"text {n}" for n in range(1000)]
    assert list(cache.rglob("*.unfinished")) == []


def test_a_local_dataset_that_lost_a_split_loses_its_file(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split}) + "\n")
    assert [path.stem for path in hub.download(f"hub:{tmp_path}")] == ["test", "train"]
    (tmp_path / "test.jsonl").unlink()
    assert [path.stem for path in hub.download(f"hub:{tmp_path}")] == ["train"]


class _Unknown(BaseHTTPRequestHandler):
    """A hub that has nothing."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


# Everything of ours that takes a hub name; each prints its error.
_LOOK_UPS = """
from mlpt.data.hub import download
from mlpt.data.tokenizers import load_tokenizer
from mlpt.downstream.loading import load_base
from mlpt.errors import UserError
from mlpt.models.conditional.encoder import load_stock
from mlpt.models.encoder import load_encoder
from mlpt.objectives.distill import _load_teacher
from mlpt.tasks import TASKS
from mlpt.tasks.hub import load_hub
for look_up in (
    lambda name: download(f"hub:{name}"),
    load_tokenizer,
    load_stock,
    _load_teacher,
    lambda name: load_base(name, TASKS["sst2"]),
    lambda name: load_encoder(name, {}),
    lambda name: load_hub("sst2", 0),
):
    try:
        look_up("someone/something")
    except UserError as error:
        print(error)
"""


def looked_up(url: str, home: Path) -> list[str]:
    """The lines that the look-ups print where the hub is at `url`."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _LOOK_UPS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_without_the_hub_each_name_is_one_line_and_nothing_is_tried_again(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Unknown)
    server.server_close()  # its port now refuses connections
    lines = looked_up(url_of(server), tmp_path)
    assert len(lines) == 7
    assert all("the hub cannot be reached" in line for line in lines)


def test_a_name_that_the_hub_does_not_know_is_one_line(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Unknown)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        lines = looked_up(url_of(server), tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert len(lines) == 7
    assert not any("cannot be reached" in line for line in lines)
