"""Fine-tuning at an S3 URI by its command: killed on one machine and ended on another, through a storage that fails."""

import json
import os
import signal
import sys

import pytest
from s3_server import S3Server, every
from waiting import wait_until

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "downstream"))

from tiny_tasks import own_tasks, saved_encoder

CELL = "mood/lr0.003-seed1"


@pytest.fixture
def s3(monkeypatch):
    server = S3Server()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


@pytest.fixture
def words(tmp_path):
    (tmp_path / "tasks").mkdir()
    model, source = saved_encoder(tmp_path / "model"), own_tasks(tmp_path / "tasks")
    (tmp_path / "mood.yaml").write_text(json.dumps(source["own"][0]))
    sizes = ["batch_size=8", "max_steps=60", "evaluate_every=20", "checkpoint_every=10", "max_length=16"]
    return ["finetune", model, "--task-file", str(tmp_path / "mood.yaml"), "seeds=1", "learning_rates=3e-3", *sizes]


@pytest.mark.slow
def test_a_fine_tuning_that_was_killed_ends_on_another_machine(s3, machines, words, tmp_path):
    bucket = s3.bucket("killed")
    here = machines("first").run(*words, "--out", str(tmp_path / "local"))
    assert here[0] == 0, here[1]
    s3.fail, s3.seconds = every(5), 0.02
    process = machines("first").start(*words, "--out", f"{bucket}/tuned")
    wait_until(lambda: f"tuned/{CELL}/checkpoints/step_00000010/COMMITTED" in s3.keys("killed"), 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (lease,) = [key for key in s3.keys("killed") if ".lease_" in key]
    s3.client().delete_object(Bucket="killed", Key=lease)  # else it is over in a minute
    done = machines("second").run(*words, "--out", f"{bucket}/tuned")
    assert done[0] == 0, done[1]
    assert f"results: {bucket}/tuned/results.json" in done[1]
    assert "going on from step" in done[1]
    assert s3.failed > 5
    for name in ("metrics.jsonl", "predictions_dev.jsonl", "model/model.safetensors"):
        assert s3.content("killed", f"tuned/{CELL}/{name}") == (tmp_path / "local" / CELL / name).read_bytes()
    assert not [key for key in s3.keys("killed") if "checkpoints" in key or ".lease_" in key]


@pytest.mark.slow
def test_an_unreachable_store_is_one_line(s3, machines, words):
    s3.stop()
    code, output = machines("first").run(*words, "--out", "s3://nowhere/tuned")
    assert code == 2
    said = [line for line in output.splitlines() if line.startswith("mlpt: ")]
    assert len(said) == 1
    assert "check the bucket, your credentials and the network" in said[0]
    assert "Traceback" not in output
    s3.start()
