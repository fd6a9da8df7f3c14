"""`mlpt runs` and `mlpt watch`: what runs have come to, following one that goes on, and its report on loopback."""

import io
import json
import socket
import threading
import urllib.error
import urllib.request

import fsspec
import pytest
from made_runs import make_run
from typer.testing import CliRunner

from mlpt.cli import app
from mlpt.errors import UserError
from mlpt.reporting.display import Display
from mlpt.reporting.following import follow
from mlpt.reporting.history import HISTORY, recorded
from mlpt.reporting.records import read_run
from mlpt.reporting.report import report_page
from mlpt.reporting.run_list import described, find_runs
from mlpt.reporting.serving import ReportServer
from mlpt.reporting.text import plain_console


def mlpt(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_runs_of_a_folder_and_of_sweeps_in_it_are_listed(tmp_path):
    make_run(tmp_path / "one", {"train": {"steps": 200, "tokens": None}})
    make_run(tmp_path / "sweep/trials/two", {"train": {"steps": 1, "tokens": 400 * 1024}}, finished=False)
    found = {run["run"]: run for run in json.loads(mlpt("runs", tmp_path, "--json"))}
    one, two = (found[str(tmp_path / name)] for name in ("one", "sweep/trials/two"))
    assert (one["state"], one["step"], one["steps"], one["tokens"]) == ("finished", 200, 200, 200 * 1024)
    assert (one["losses_are"], two["losses_are"], two["steps"]) == ("held_out", "dev", 400)
    assert one["seconds"] == pytest.approx(200 * 1024 / 2000)
    assert one["mixture"] == pytest.approx({"mlm": 0.9, "cse": 0.1})
    shown = mlpt("runs", tmp_path)
    assert "sweep/trials/two" in shown
    assert "mlm 0.900 cse 0.100" in shown


def test_the_state_of_a_run_is_what_its_process_does(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)

    def state() -> str:
        return read_run(str(folder)).state

    with recorded(folder, 0):
        assert state() == "running"
    assert state() == "finished"
    with pytest.raises(KeyboardInterrupt), recorded(folder, 10):
        raise KeyboardInterrupt
    assert state() == "stopped"
    with pytest.raises(UserError), recorded(folder, 20):
        raise UserError("the loss is\nnot finite")
    assert state() == "failed"
    starts = json.loads((folder / HISTORY).read_text())
    assert [one["step"] for one in starts] == [0, 10, 20]
    assert starts[-1]["error"] == "the loss is not finite"
    with recorded(folder, 30):
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 200, "held_out": {"mlm": 3.0}}\n')
        assert state() == "running"  # its model and its report are still to come
    (folder / "metrics.jsonl").write_text("")
    killed = [{key: value for key, value in starts[-1].items() if key not in ("end", "until", "error")}]
    (folder / HISTORY).write_text(json.dumps(killed))
    assert state() == "stopped"  # its process noted no end, and is gone


def test_no_runs_are_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no runs"):
        mlpt("runs", tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        mlpt("runs", tmp_path / "missing")


class _Watched(Display):
    """Says when it has been shown a step."""

    def __init__(self, output: io.StringIO):
        super().__init__("lines", plain_console(file=output))
        self.seen = threading.Event()

    def handle(self, event):
        super().handle(event)
        if event["event"] == "step" and event["step"] == 210:
            self.seen.set()


def test_watching_follows_a_run_to_its_end(tmp_path):
    folder = make_run(tmp_path / "run", {"train": {"steps": 220}}, finished=False)
    output, begun = io.StringIO(), threading.Event()
    display = _Watched(output)

    def goes_on() -> None:
        with recorded(folder, 200), open(folder / "metrics.jsonl", "a", buffering=1) as file:
            begun.set()
            line = {"step": 210, "tokens": 210 * 1024, "loss": {"mlm": 1.25}, "tokens_per_second": 5.0}
            file.write(json.dumps(line) + "\n")
            assert display.seen.wait(60)
            file.write(json.dumps({"step": 220, "held_out": {"mlm": 2.5}}) + "\n")

    run = threading.Thread(target=goes_on)
    run.start()
    assert begun.wait(60)
    follow(str(folder), display)
    run.join()
    assert "run is finished: 220 steps" in output.getvalue()
    assert "held-out mlm: 2.5000 nats" in output.getvalue()


def get(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.read().decode()


def test_the_report_is_served_on_loopback_alone_and_has_the_news(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    with ReportServer([str(folder)]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.socket.getsockname()[0] == "127.0.0.1"
        before = get(server.url + "version")
        assert "Loss of mlm" in get(server.url)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 210, "loss": {"dtd": 1.0}}\n')
        assert get(server.url + "version") != before
        assert "Loss of dtd" in get(server.url)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(server.url, Host="elsewhere.example")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(server.url + "../etc/passwd")
        server.shutdown()


def test_a_port_that_is_taken_is_one_line(tmp_path):
    folder = make_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used"):
            ReportServer([str(folder)], port)


def test_a_run_at_a_uri_is_listed_and_read_like_one_in_a_folder(tmp_path):
    folder = make_run(tmp_path / "run")
    files = fsspec.filesystem("memory")
    files.put(f"{folder}/", "/watched/run/", recursive=True)
    try:
        (there,) = described(find_runs("memory://watched"))
        (here,) = described(find_runs(str(folder)))
        assert there == here | {"run": "memory://watched/run"}
        assert "Loss of mlm" in report_page(["memory://watched/run"])
        output = io.StringIO()
        follow("memory://watched/run", Display("lines", plain_console(file=output)))
        assert "run is finished: 200 steps" in output.getvalue()
        with ReportServer(["memory://watched/run"]) as server:
            before = server.version()
            assert b"Loss of mlm" in server.page()
            files.pipe("/watched/run/summary.json", b'{"seconds": 7}')
            assert server.version() != before
    finally:
        files.rm("/watched", recursive=True)
