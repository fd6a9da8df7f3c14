"""Storage behind URIs: plain reads and writes, failures that pass, and failures that stay."""

import subprocess
import sys

import pytest

from mlpt.errors import UserError
from mlpt.storage.store import StorageError, Store


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    place = tmp_path if request.param == "file" else f"/{tmp_path.name}"
    return Store(f"{request.param}://{place}/runs/first")


def test_what_was_written_is_read_listed_and_removed(store, tmp_path):
    (tmp_path / "local").write_bytes(b"from a file")
    store.write("checkpoints/step_1/state.json", b"old")
    store.write("checkpoints/step_1/state.json", b"new")
    store.upload(tmp_path / "local", "checkpoints/step_1/model")
    assert store.read("checkpoints/step_1/state.json") == b"new"
    assert store.names("checkpoints/step_1") == ["model", "state.json"]
    assert store.names("checkpoints") == ["step_1"]
    assert store.download("checkpoints/step_1/model", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"from a file"
    store.remove("checkpoints/step_1/model")
    store.remove("checkpoints/step_1")
    assert store.names("checkpoints/step_1") == []


def test_what_is_not_there_is_no_error(store, tmp_path):
    assert store.read("config.yaml") is None
    assert store.names("checkpoints") == []
    assert not store.download("model", tmp_path / "back")
    store.remove("checkpoints")


def test_a_failure_that_passes_is_retried_with_a_line_in_the_log(flaky, caplog):
    store = Store("flaky://bucket/run")
    flaky.fail(times=3)
    store.write("a", b"content")
    assert flaky.fail_next == 0
    lines = [record.getMessage() for record in caplog.records if "again in" in record.getMessage()]
    assert len(lines) == 3
    assert "flaky://bucket/run/a (503 Service Unavailable)" in lines[0]
    assert store.read("a") == b"content"


LEFT_TO_ASYNCIO = """
import asyncio, gc
from mlpt.storage.store import Store
Store("s3://bucket/run")
async def broken():
    raise OSError("Cannot write to closing transport")
loop = asyncio.new_event_loop()
task = loop.create_task(broken())
loop.run_until_complete(asyncio.wait([task]))
del task
gc.collect()
"""


def test_what_a_buckets_client_leaves_to_asyncio_is_no_traceback_on_the_terminal():
    pytest.importorskip("s3fs")
    said = subprocess.run([sys.executable, "-c", LEFT_TO_ASYNCIO], capture_output=True, text=True, timeout=120)
    assert (said.returncode, said.stderr) == (0, "")


def test_a_failure_that_stays_is_one_line_and_later_operations_do_not_wait_for_it(flaky):
    store = Store("flaky://bucket/run")
    flaky.fail()
    with pytest.raises(StorageError, match=r"^cannot write flaky://bucket/run/a \(503 Service Unavailable\); check"):
        store.write("a", b"")
    tried = len(flaky.calls)
    with pytest.raises(StorageError):
        store.write("a", b"")
    assert (tried, len(flaky.calls)) == (5, 6)
    flaky.heal()
    store.write("a", b"")
    flaky.fail(times=1)
    store.write("a", b"")  # after a success there are several tries again


@pytest.mark.parametrize("error", [PermissionError("Access Denied"), type("NoCredentialsError", (Exception,), {})()])
def test_what_no_retry_can_mend_is_not_retried(flaky, error):
    flaky.fail(error=error)
    with pytest.raises(StorageError, match="cannot read flaky://bucket/run/a"):
        Store("flaky://bucket/run").read("a")
    assert len(flaky.calls) == 1


def test_a_uri_with_a_password_is_refused_without_showing_it():
    with pytest.raises(UserError, match=r"sftp://host/runs holds a password") as raised:
        Store("sftp://me:geheim@host/runs")
    assert "geheim" not in str(raised.value)


def test_a_uri_that_is_none_is_one_line():
    with pytest.raises(UserError, match=r"^s3://\[x is no URI \(Invalid IPv6 URL\); write it as s3://bucket/folder$"):
        Store("s3://[x")


def test_a_protocol_that_nobody_knows_is_one_line():
    with pytest.raises(UserError, match="nowhere://bucket/run: Protocol not known"):
        Store("nowhere://bucket/run")
