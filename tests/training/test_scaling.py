"""The cost model: its bytes are those that DDP sends, its seconds those of the equations."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from torch import nn

from mlpt.training.compiling import wrapped
from mlpt.training.config import TrainConfig
from mlpt.training.scaling import Machine, Workload, cost, most_workers, ring_bytes

BASE = Workload(
    parameters=110_000_000,
    step_tokens=1 << 19,
    flops_per_token=6 * 86e6 + 12 * 12 * 768 * 512,
    interval=50,
    lookahead=2.0,
)
# Assumed of one H100 among others: 36 % of 989 TFLOP/s, 400 Gbit/s, 10 us, 20 GB/s to the host.
H100 = Machine(flops=0.36 * 989e12, link=50e9, latency=1e-5, copy=20e9)


def test_a_ring_sends_what_its_messages_add_up_to():
    for workers in (1, 2, 3, 8):
        chunks = [12_000 / workers] * workers
        sent = sum(chunks[:-1]) + sum(chunks[:-1])  # all but one while they are summed, all but one while they go round
        assert ring_bytes(12_000, workers) == pytest.approx(sent)


def rank(group):
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 5))
    forward = wrapped(model, TrainConfig(), group, print)
    summed = []

    def count(state, bucket):
        summed.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    forward.register_comm_hook(None, count)
    forward(torch.ones(2, 30)).sum().backward()
    workload = Workload(sum(one.numel() for one in model.parameters()), 1, 1.0)
    assert sum(summed) == workload.gradient


def test_the_bytes_of_a_step_are_those_that_ddp_sums():
    run_ranks(rank)


def test_a_step_is_its_arithmetic_and_what_cannot_hide_behind_it():
    machine = Machine(flops=1e9, link=1e6, latency=0.0, copy=1e9)
    workload = Workload(parameters=1000, step_tokens=1000, flops_per_token=3e6, checkpoint_every=10**9)
    two = cost(workload, machine, 2)
    assert (two.compute, two.sent) == (1.5, 4000)
    assert two.exposed == 0  # 4 ms against a second of backward pass
    slow = cost(workload, Machine(flops=1e9, link=1000, latency=0.25, copy=1e9), 2)
    assert slow.exchange == pytest.approx(2 * 0.25 + 4)
    assert slow.exposed == pytest.approx(4.5 - 1.0)
    assert slow.efficiency == pytest.approx(1.5 / 5.0, rel=1e-6)


def test_gradients_of_arms_are_summed_behind_nothing():
    """Three arms over two steps of every four: six sums of 4 kB, each of which two workers send once."""
    machine = Machine(flops=1e9, link=1e6, latency=0.25, copy=1e12)
    plain = Workload(parameters=1000, step_tokens=1000, flops_per_token=3e6, interval=4, lookahead=0.0)
    with_arms = replace(plain, arm_gradients=6)
    assert with_arms.sent_for_arms(2) == 6 * 4000
    before, after = cost(plain, machine, 2), cost(with_arms, machine, 2)
    assert after.sent - before.sent == 6 * 4000 / 4
    assert after.exposed - before.exposed == pytest.approx(6 * (2 * 0.25 + 0.004) / 4)


def test_a_meta_learner_that_is_too_slow_holds_training_up():
    workload = Workload(parameters=1000, step_tokens=1000, flops_per_token=3e6, interval=4, lookahead=2.0)
    machine = Machine(flops=1e9, link=1e12, latency=0.0, copy=1e12)
    eight, four = cost(workload, machine, 2), cost(workload, machine, 4)
    assert eight.learner == pytest.approx(2.0 * 2 / 4, rel=1e-3)  # two steps of one worker, in four of half the length
    assert four.learner == pytest.approx(2.0, rel=1e-3)
    assert four.step == pytest.approx(eight.step, rel=1e-3)  # more workers only wait
    assert most_workers(workload, machine) == 2


def test_more_workers_are_never_more_efficient():
    found = [cost(BASE, H100, 2**k).efficiency for k in range(12)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.99


def test_the_table_of_the_page_is_what_the_model_says():
    page = (Path(__file__).resolve().parents[2] / "docs/SCALING.md").read_text()
    for workers in (8, 64, 512):
        one = cost(BASE, H100, workers)
        cells = [
            f"{one.compute * 1e3:.1f}",
            f"{one.exchange * 1e3:.1f}",
            f"{one.exposed * 1e3:.1f}",
            f"{one.snapshot * 1e3:.1f}",
            f"{one.checkpoint * 1e3:.2f}",
            f"{one.learner:.2f}",
            f"{100 * one.efficiency:.0f} %",
        ]
        assert re.search(rf"^\| {workers} \| {re.escape(' | '.join(cells))} \|$", page, re.MULTILINE), cells
