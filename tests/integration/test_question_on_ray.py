"""Questioning by Ray tasks: the same bytes as in one process, through the deaths of a worker and of the driver."""

import os
import re
import signal

import psutil
import pytest
import torch
from real_runs import metrics_of
from waiting import wait_until

from mlpt.data.blocks import Blocks
from mlpt.data.token_scores import TokenScores
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder


@pytest.fixture(scope="module")
def model(small_blocks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    blocks = Blocks.open(small_blocks)
    config = ModelConfig(hidden_size=32, layers=1, heads=2)
    build_encoder(config, blocks.vocabulary, {}, blocks.block_size, seed=0).save(folder, blocks.tokenizer())
    return folder


def hashes(folder):
    return [part.entry.sha256 for part in TokenScores.open(str(folder)).manifest.parts]


def test_two_ray_workers_leave_the_bytes_that_one_process_leaves(mlpt, model, small_blocks, tmp_path):
    for workers in (1, 2):
        out = tmp_path / str(workers)
        code, output = mlpt.run("question", model, small_blocks, "--out", out, "--workers", workers, "metrics=loss")
        assert code == 0, output
        assert "tokens are hard (above 0.1)" in output
    assert len(hashes(tmp_path / "1")) > 3
    assert hashes(tmp_path / "2") == hashes(tmp_path / "1")


@pytest.mark.slow
def test_what_goes_wrong_in_a_task_is_one_line(mlpt, small_blocks, tmp_path):
    blocks = Blocks.open(small_blocks)
    encoder = build_encoder(ModelConfig(hidden_size=32, layers=1, heads=2), blocks.vocabulary, {}, 32, seed=0)
    with torch.no_grad():
        encoder.backbone.get_input_embeddings().weight.fill_(torch.nan)
    encoder.save(tmp_path / "model")
    code, output = mlpt.run("question", tmp_path / "model", small_blocks, "--out", tmp_path / "scores", "--workers", 2)
    assert code == 2
    assert "are not numbers: its weights are damaged" in output
    assert "Traceback" not in output
    words = ("question", tmp_path / "model", small_blocks, "--out", tmp_path / "scores", "--workers", 2, "--gpus", 9)
    code, output = mlpt.run(*words)
    assert code == 2
    assert "the run needs 18 GPU and Ray has" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_sigterm_is_one_line_and_its_exit_code(mlpt, model, small_blocks, tmp_path):
    words = ("question", model, small_blocks, "--out", tmp_path / "scores", "--workers", 2, "batch_tokens=32")
    process = mlpt.start(*words)
    wait_until(lambda: list(tmp_path.glob("scores/parts/*.arrow")) or process.poll() is not None)
    process.terminate()
    assert process.wait(timeout=120) == 143, mlpt.output()
    assert mlpt.output().splitlines()[-1].startswith("mlpt: stopped; the same command goes on where it was")
    assert "SIGTERM received" not in mlpt.output()
    assert "Traceback" not in mlpt.output()


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_driver_cost_no_committed_block(mlpt, model, small_blocks, tmp_path):
    out = tmp_path / "scores"
    # One block a pass: slow enough to be met half-way.
    words = ("question", model, small_blocks, "--out", out, "--workers", 2, "batch_tokens=32")
    driver = mlpt.start(*words)

    def committed():
        return {path.name: path.stat().st_mtime_ns for path in out.glob("parts/*.arrow")}

    def scoring():
        return [one for one in psutil.Process(driver.pid).children(recursive=True) if "_score" in one.name()]

    wait_until(committed)
    victim = wait_until(scoring)[0]
    victim.kill()
    before = wait_until(lambda: len(committed()) >= 4 and committed())
    assert driver.poll() is None, mlpt.output()
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not psutil.pid_exists(victim.pid) or psutil.Process(victim.pid).status() == "zombie")
    code, output = mlpt.run(*words)
    assert code == 0, output
    assert before.items() <= committed().items(), "what was committed is not scored again"
    code, output = mlpt.run("question", model, small_blocks, "--out", tmp_path / "whole", "batch_tokens=32")
    assert code == 0, output
    assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_online_run_goes_on_bit_for_bit(mlpt, model, small_blocks, tmp_path):
    """The actor questions in the background; a run whose driver was killed repeats one in a single process."""
    settings = [
        f"model.pretrained={model}",
        f"data.source={small_blocks}",
        "train.steps=60",
        "train.batch_size=8",
        "train.schedule.warmup=0",
        "train.optimizer.lr=1e-3",
        "train.checkpoint_every=10",
        "train.log_every=1",
        "train.evaluate_every=0",
        "train.evaluate_batches=2",
        "meta.interval=10",
        "meta.lag=10",
        "report.tensorboard=false",
    ]
    whole, run = tmp_path / "whole", tmp_path / "run"
    code, said = mlpt.run("pretrain", "self_evolution_online", *settings, f"run_dir={whole}", "runtime.num_workers=0")
    assert code == 0, said
    process = mlpt.start("pretrain", "self_evolution_online", *settings, f"run_dir={run}")
    wait_until(lambda: any(line["step"] >= 25 for line in metrics_of(run)), 240)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    worker = int(re.findall(r"process (\d+)", (run / "logs/rank_0.log").read_text())[-1])
    wait_until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie", 240)
    code, said = mlpt.run("pretrain", "--resume", run)
    assert code == 0, said
    assert "resumed at step" in said

    def told(folder):
        kept = ("step", "loss", "held_out", "mixture", "policy")
        lines = [(line, line.get("meta", {}).get("guide")) for line in metrics_of(folder)]
        return [(*(line.get(key) for key in kept), guide) for line, guide in lines]

    assert told(run) == told(whole)
    assert sum(guide is not None for *_, guide in told(run)) == 5
