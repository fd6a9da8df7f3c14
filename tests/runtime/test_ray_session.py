"""A Ray that does not start, or cannot be reached, is one line."""

import contextlib
import subprocess

import pytest
import ray
from ray._private import services, worker
from ray._private.process_watcher import report_raylet_error_logs
from ray._private.utils import publish_error_to_driver
from waiting import wait_until

from mlpt.config import RuntimeConfig
from mlpt.errors import UserError
from mlpt.runtime import cluster
from mlpt.runtime.cluster import ray_session


def test_a_ray_of_our_own_that_does_not_start_is_one_line(monkeypatch):
    started = starts(monkeypatch, in_vain=100)
    with (
        pytest.raises(UserError, match=r"Ray does not start on this machine \(The current node timed out") as raised,
        ray_session(RuntimeConfig(), cpus=1),
    ):
        pass
    assert "\n" not in str(raised.value)
    assert len(started) == 3


def test_a_ray_that_starts_late_on_a_busy_machine_is_started_again(monkeypatch):
    started = starts(monkeypatch, in_vain=1)
    with ray_session(RuntimeConfig(), cpus=1):
        assert len(started) == 2
    assert [process.wait() != 0 for process in started] == [True, False]  # the first was ended, the second was not


@pytest.mark.parametrize("raylet_is_there", [True, False])
def test_a_raylet_that_is_there_is_waited_for(monkeypatch, raylet_is_there):
    """Ray asks for its node for 30 s in all, and each time gets no answer before there is one."""
    asked = []

    def get_node(address, node):
        asked.append((address, node))
        if len(asked) < 4:
            raise RuntimeError("no node of this id")  # as Ray's does while the node is not known
        return {"node_id": node}

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(cluster, "_has_raylet", lambda: raylet_is_there)
    with cluster._waiting_for_the_node():
        if raylet_is_there:
            assert services.get_node("address", "id") == {"node_id": "id"}
        else:
            with pytest.raises(RuntimeError):
                services.get_node("address", "id")
    assert len(asked) == (4 if raylet_is_there else 1)
    assert services.get_node is get_node


def test_the_log_of_a_raylet_that_died_is_not_printed(capsys, tmp_path):
    """Ray's agents send it to the driver, which may print it before it hears of the death itself."""
    (tmp_path / "raylet.out").write_text("one line of its log\n")
    printed = ""
    with ray_session(RuntimeConfig(), cpus=1):
        gcs = worker.global_worker.gcs_client
        report_raylet_error_logs(str(tmp_path), gcs)
        publish_error_to_driver("other", "another error of Ray", gcs_client=gcs)

        def comes():
            nonlocal printed
            printed += capsys.readouterr().out
            return "another error of Ray" in printed

        wait_until(comes)
    assert "Raylet is terminated" not in printed
    assert "one line of its log" not in printed


def starts(monkeypatch, in_vain):
    """Let so many starts of Ray take too long; the processes that they have started."""
    started = []

    def start(**settings):
        nap = "60" if len(started) < in_vain else "0"
        started.append(subprocess.Popen(["sleep", nap]))
        if len(started) <= in_vain:
            raise Exception("The current node timed out during startup. This could happen ...")  # as Ray 2.60 does

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(cluster, "watched", lambda *known: contextlib.nullcontext())
    return started
