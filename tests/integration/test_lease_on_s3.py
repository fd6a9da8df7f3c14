"""Leases at a URI: conditional writes decide, as another machine sees them."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from s3_server import S3Server

from mlpt.errors import UserError
from mlpt.outputs import LEASE, leased
from mlpt.run.launch import pretrain
from mlpt.storage.store import Store

RACES = 50


@pytest.fixture(scope="module")
def server():
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(server, request, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.bucket(f"leases-{abs(hash(request.node.nodeid))}")


def test_of_two_that_start_at_once_exactly_one_wins_in_fifty_races(bucket):
    both = threading.Barrier(2, timeout=60)

    def start(store: Store) -> bool:
        both.wait()
        try:
            with leased(store, store.uri):
                both.wait()  # the other one has tried too
        except UserError as error:
            both.wait()
            return "another process is writing to" not in str(error)
        return True

    with ThreadPoolExecutor(2) as threads:
        for number in range(RACES):
            stores = [Store(f"{bucket}/{number}") for _ in range(2)]
            assert sum(threads.map(start, stores)) == 1
            assert stores[0].names("") == []


def test_what_is_there_is_not_made_again(bucket):
    store = Store(bucket)
    assert store.create("one", b"first")
    assert not store.create("one", b"second")
    assert store.read("one") == b"first"


def test_a_run_at_a_uri_that_another_machine_holds_is_refused_until_the_lease_ends(bucket, small_blocks):
    uri = f"{bucket}/run"
    settings = {
        "data": {"source": small_blocks},
        "model": {"hidden_size": 32, "layers": 1, "heads": 2},
        "objectives": ["mlm"],
        "meta": {"rules": {"mixture": {"rule": "uniform"}}},
        "train": {"steps": 2, "batch_size": 8, "evaluate_batches": 1, "checkpoint_every": 1},
        "runtime": {"num_workers": 0},
        "report": {"tensorboard": False, "progress": "off"},
    }
    owner = {"host": "elsewhere", "machine": "elsewhere", "process": 7, "since": "noon"}
    store = Store(uri)
    held = json.dumps({**owner, "expires": time.time() + 1000}).encode()
    store.write(f"{LEASE}000001.json", held)
    says = rf"another process is writing to {uri} \(process 7 on elsewhere, since noon\)"
    with pytest.raises(UserError, match=says):
        pretrain(None, {**settings, "run_dir": uri})
    assert store.names("") == [f"{LEASE}000001.json"]
    store.write(f"{LEASE}000001.json", json.dumps({**owner, "expires": time.time() - 1}).encode())
    pretrain(None, {**settings, "run_dir": uri})
    store.write(f"{LEASE}000001.json", held)
    with pytest.raises(UserError, match=says):
        pretrain(resume=uri, settings={"train": {"steps": 3}})
    store.remove(f"{LEASE}000001.json")
    assert pretrain(resume=uri, settings={"train": {"steps": 3}}).summary["steps"] == 3
