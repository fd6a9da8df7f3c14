"""Runs on S3 without a shared file system: they end, move between machines, and outlast a storage that fails."""

import json
import os
import signal
from pathlib import Path

import pytest
from ray_heads import Head
from s3_server import S3Server, every
from transformers import AutoTokenizer
from waiting import wait_until

from mlpt.errors import UserError
from mlpt.run.launch import pretrain

TINY = {
    "model": {"hidden_size": 32, "layers": 1, "heads": 2},
    "objectives": {"cse": None},
    "meta": {"interval": 10, "lag": 5},
    "train": {"steps": 30, "batch_size": 8, "checkpoint_every": 10, "evaluate_batches": 2, "log_every": 1},
    "runtime": {"num_workers": 0},
    "report": {"tensorboard": False, "progress": "off"},
}
WORDS = [
    *("model.hidden_size=32", "model.layers=1", "model.heads=2"),
    *("objectives.cse=null", "meta.interval=10", "meta.lag=5", "train.batch_size=8", "train.checkpoint_every=10"),
    *("train.evaluate_batches=2", "train.log_every=1", "report.tensorboard=false"),
]
IN_PROCESS = "runtime.num_workers=0"


@pytest.fixture(scope="module")
def s3():
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3, request, monkeypatch):
    """The URI of a new bucket; the server is well again afterwards."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    yield s3.bucket(f"bucket-{abs(hash(request.node.nodeid))}")
    s3.fail, s3.seconds = lambda method, path: False, 0.0


@pytest.fixture(scope="module")
def undisturbed(small_blocks, tmp_path_factory):
    """metrics.jsonl of the run in a local folder."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    pretrain(None, {**TINY, "data": {"source": small_blocks}, "run_dir": str(folder)})
    return losses((folder / "metrics.jsonl").read_text())


def losses(metrics):
    lines = map(json.loads, metrics.splitlines())
    return [json.dumps({key: line.get(key) for key in ("step", "loss", "dev", "held_out")}) for line in lines]


def losses_at(s3, uri):
    name, _, key = uri.removeprefix("s3://").partition("/")
    return losses(s3.content(name, f"{key}/metrics.jsonl").decode())


def settings(blocks, uri):
    return {**TINY, "data": {"source": blocks}, "run_dir": uri}


def words(blocks, uri, steps=30):
    return ["pretrain", *WORDS, f"data.source={blocks}", f"run_dir={uri}", f"train.steps={steps}"]


def last_line(output):
    said = [line for line in output.splitlines() if line.startswith("mlpt: ")]
    assert len(said) == 1, output
    assert "Traceback" not in output
    return said[0]


def test_a_run_on_s3_leaves_all_of_itself_there_and_injected_503s_change_nothing(
    s3, bucket, small_blocks, tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    s3.fail = every(4)
    run = pretrain(None, settings(small_blocks, f"{bucket}/runs/first"))
    assert s3.failed > 5
    keys = {key.removeprefix("runs/first/") for key in s3.keys(bucket.removeprefix("s3://"))}
    steps = [f"checkpoints/step_000000{step}/COMMITTED" for step in (10, 20, 30)]
    files = ["model/model.safetensors", "model/tokenizer.json", "logs/rank_0.log", "policies/mixture.json"]
    assert keys >= {"config.yaml", "blocks.json", "metrics.jsonl", "summary.json", *steps, *files}
    assert losses_at(s3, f"{bucket}/runs/first") == undisturbed
    log = (run.folder / "logs" / "rank_0.log").read_text()
    assert "again in 0.5 s" in log
    assert "geheim" not in log + (run.folder / "config.yaml").read_text()


def test_runs_on_blocks_in_a_bucket_end_with_their_tokenizer(s3, bucket, tiny_text, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocks = f"{bucket}/blocks"
    short = {**TINY, "train": {**TINY["train"], "steps": 2}}
    makes = {**short, "data": {"source": str(tiny_text), "vocab_size": 300, "block_size": 32}, "blocks": blocks}
    takes = {**short, "data": {"source": blocks}}
    runs = [
        pretrain(None, {**one, "run_dir": str(tmp_path / name)}) for name, one in (("makes", makes), ("takes", takes))
    ]
    first, second = (AutoTokenizer.from_pretrained(run.folder / "model").get_vocab() for run in runs)
    assert first == second
    assert len(first) == 300
    assert runs[0].summary["held_out"] == runs[1].summary["held_out"]


def test_a_bucket_that_is_missing_is_one_line_before_anything_is_prepared(bucket, tiny_text, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"^cannot write s3://nowhere/run/\S+ \(The specified bucket does not"):
        pretrain(None, settings(str(tiny_text), "s3://nowhere/run"))
    assert not (tmp_path / "cache").exists()


def test_missing_credentials_are_one_line(s3, bucket, tiny_text, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # an earlier test's has found its credentials already
    with pytest.raises(UserError, match=f"^cannot list {bucket}/run/ .Unable to locate credentials"):
        pretrain(None, settings(str(tiny_text), f"{bucket}/run"))
    S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_a_killed_run_goes_on_on_another_machine_bit_for_bit(s3, bucket, machines, small_blocks, undisturbed):
    uri = f"{bucket}/run"
    first = machines("first")
    process = first.start(*words(small_blocks, uri), IN_PROCESS)
    s3.seconds = 0.05  # so that the kill falls into an upload now and then
    wait_until(lambda: process.poll() is None and any("0010/COMMITTED" in key for key in s3.keys(uri[5:-4])))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, output = machines("second").run("pretrain", "--resume", uri)
    assert code == 0, output
    assert "resumed at step" in output
    assert losses_at(s3, uri) == undisturbed


@pytest.mark.slow
def test_a_server_that_goes_away_costs_no_work_and_one_line_and_later_gets_it_all(
    s3, bucket, machines, small_blocks, undisturbed
):
    uri = f"{bucket}/run"
    mlpt = machines("first")
    process = mlpt.start(*words(small_blocks, uri), IN_PROCESS)
    s3.seconds = 0.2  # so that much is still to be sent when the server goes
    wait_until(lambda: any("0010/COMMITTED" in key for key in s3.keys(uri[5:-4])))
    s3.stop()
    try:
        assert process.wait(timeout=600) == 2, mlpt.output()
    finally:
        s3.seconds = 0.0
        s3.start()
    line = last_line(mlpt.output())
    assert "the storage is back" in line
    assert "warning: cannot" in mlpt.output()
    folder = Path(line.split("complete in ")[1].split(" on ")[0])
    assert (folder / "checkpoints" / "step_00000030" / "COMMITTED").is_file()
    assert (folder / "model" / "model.safetensors").is_file()
    code, output = mlpt.run("pretrain", "--resume", uri)
    assert code == 0, output
    assert "resumed at step 30" in output
    assert losses_at(s3, uri) == undisturbed


@pytest.mark.slow
def test_on_ray_driver_and_worker_share_no_folder_but_the_bucket(s3, bucket, machines, small_blocks, tmp_path):
    uri = f"{bucket}/run"
    s3.fail = every(5)
    head = Head(tmp_path, cpus=2)  # its workers have a cache of their own
    try:
        first = machines("first")
        first.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token)}
        address = f"runtime.address=127.0.0.1:{head.port}"
        code, output = first.run(*words(small_blocks, uri, 20), "runtime.num_workers=1", address)
    finally:
        head.close()
    assert code == 0, output
    (driver,), (worker,) = ((cache / "cache/mlpt/runs").iterdir() for cache in (tmp_path / "first", tmp_path))
    assert list(driver.glob("checkpoints/*")) == []
    assert (driver / "model" / "model.safetensors").read_bytes() == (worker / "model/model.safetensors").read_bytes()
    assert {f"run/logs/{name}.log" for name in ("rank_0", "meta_learner")} <= set(s3.keys(uri[5:-4]))
    s3.fail = lambda method, path: False
    config = s3.content(uri[5:-4], "run/config.yaml").decode()
    s3.client().put_object(Bucket=uri[5:-4], Key="run/config.yaml", Body=config.replace("steps: 20", "steps: 30"))
    code, output = machines("second").run("pretrain", "--resume", uri, "runtime.address=local")
    assert code == 0, output
    assert "resumed at step 20" in output
    assert any("step_00000030/COMMITTED" in key for key in s3.keys(uri[5:-4]))
