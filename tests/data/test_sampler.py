"""Every row once an epoch, whatever the batch, the step one begins at, or the number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpt.data.sampler import Sampler
from mlpt.errors import UserError

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50)).filter(lambda one: one[1] <= one[0])


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 5))
def test_every_row_comes_once_an_epoch_also_where_batches_straddle_it(sizes: tuple[int, int, int], seed: int) -> None:
    rows, batch, block = sizes
    sampler = Sampler(rows, batch, seed, block)
    steps = -(-3 * rows // batch)
    stream = np.concatenate([sampler.rows(step) for step in range(steps)])
    assert all(len(sampler.rows(step)) == batch for step in range(steps))
    for epoch in range(3):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, step=st.integers(0, 10**7), world=st.integers(1, 5))
def test_the_ranks_of_any_world_share_the_global_batch(sizes: tuple[int, int, int], step: int, world: int) -> None:
    rows, batch, block = sizes
    whole = Sampler(rows, batch, 1, block).rows(step)
    parts = [Sampler(rows, batch, 1, block).rows(step, rank, world) for rank in range(world)]
    rebuilt = np.empty_like(whole)
    for rank, part in enumerate(parts):
        rebuilt[rank::world] = part
    assert (rebuilt == whole).all()


def test_a_resumed_sampler_goes_on_where_the_other_stopped() -> None:
    through = Sampler(1000, 32, seed=3)
    expected = [through.rows(step) for step in range(100)]
    for step in (99, 31, 62, 0):
        assert (Sampler(1000, 32, seed=3).rows(step) == expected[step]).all()


def test_epochs_and_seeds_have_their_own_orders() -> None:
    first, second = Sampler(100, 100, 0), Sampler(100, 100, 1)
    assert not (first.rows(0) == first.rows(1)).all()
    assert not (first.rows(0) == second.rows(0)).all()
    assert not (first.rows(0) == np.arange(100)).all()


def test_a_whole_permutation_mixes_all_rows_and_a_block_shuffle_stays_in_a_chunk() -> None:
    assert np.ptp(Sampler(10_000, 100, 0).rows(0)) > 5_000
    chunked = Sampler(10_000, 100, 0, block=500)
    firsts = [chunked.rows(step) // 500 for step in range(100)]
    assert all(len(set(one)) == 1 for one in firsts)
    assert [one[0] for one in firsts[::5]] != sorted(one[0] for one in firsts[::5])


def test_very_many_rows_need_no_permutation_of_them_all() -> None:
    sampler = Sampler(2 * 10**9, 64, 0)
    rows = sampler.rows(10**9)  # in the 32nd epoch
    assert len(set(rows)) == 64
    assert sampler.block < 10**7
    assert sampler._chunk is not None
    assert sampler._chunk[1].nbytes < 50e6


def test_epochs_are_counted_in_rows() -> None:
    assert Sampler(100, 10, 0).epoch(25) == 2.5


def test_fewer_rows_than_a_batch_is_one_line() -> None:
    with pytest.raises(UserError, match="too little text: 7 blocks don't fill one batch of 8"):
        Sampler(7, 8, 0)
    with pytest.raises(ValueError, match="rank 2"):
        Sampler(8, 8, 0).rows(0, rank=2, world=2)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, position=st.integers(0, 10**6), counts=st.lists(st.integers(0, 50), max_size=5))
def test_rows_taken_in_pieces_are_the_stream_that_batches_give(
    sizes: tuple[int, int, int], position: int, counts: list[int]
) -> None:
    rows, batch, block = sizes
    sampler = Sampler(rows, batch, 2, block)
    pieces, at = [], position
    for count in counts:
        piece = sampler.take(at, count)
        assert piece.shape == (count,)
        assert piece.dtype == np.int64
        pieces.append(piece)
        at += count
    first, last = position // batch, at // batch + 1
    stream = np.concatenate([Sampler(rows, batch, 2, block).rows(step) for step in range(first, last)])
    begin = position - first * batch
    expected = stream[begin : begin + sum(counts)].tolist()
    assert [row for piece in pieces for row in piece.tolist()] == expected


def test_streams_of_one_seed_differ_by_their_names() -> None:
    orders = [tuple(Sampler(100, 10, 0, stream=name).take(0, 100)) for name in ("", "legal", "code")]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(100)) for order in orders)
