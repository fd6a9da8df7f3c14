"""A collective that times out is told from other errors, and said in one line."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from mlpt.training.group import waited_too_long


def rank(group):
    impatient = dist.new_group(timeout=timedelta(seconds=0.2))
    if group.leads:  # the other rank never joins these two
        for collective in (
            lambda: dist.all_reduce(torch.ones(3), group=impatient),
            lambda: dist.broadcast_object_list([None], src=1, group=impatient),
        ):
            with pytest.raises(RuntimeError) as raised:
                collective()
            said = waited_too_long(raised.value, group.rank)
            assert said is not None, raised.value
            assert said.startswith("rank 0 waited for the other ranks until its time was up")
            assert "\n" not in said
    dist.barrier()


@pytest.mark.slow
def test_a_collective_that_one_rank_never_joins_is_one_line():
    run_ranks(rank)


@pytest.mark.parametrize(
    "text",
    [  # of gloo, of torch's store, of NCCL's watchdog
        "[unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete",
        "Application timeout caused pair closure",
        "wait timeout after 300000ms, keys: /default_pg/0//cpu//0/rank_1",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE) ran for 600000 ms",
    ],
)
def test_timeouts_of_every_backend_are_known(text):
    assert waited_too_long(RuntimeError(text), 1) is not None


def test_other_errors_are_not_taken_for_one():
    assert waited_too_long(RuntimeError("CUDA out of memory"), 0) is None
    assert waited_too_long(ValueError("Timed out waiting"), 0) is None
