"""Passes side by side: in order, few waiting, and what one raises is raised."""

import threading

import pytest
import torch

from mlpt.downstream.side_by_side import side_by_side


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(side_by_side(lambda n: n * n, iter(range(50)), workers)) == [n * n for n in range(50)]


def test_items_are_worked_on_at_once_with_their_share_of_the_threads():
    both = threading.Barrier(2, timeout=60)  # is passed only if two items are under way at once

    def work(_):
        both.wait()
        return torch.get_num_threads()

    before = torch.get_num_threads()
    assert list(side_by_side(work, range(4), workers=2)) == [max(1, before // 2)] * 4
    assert torch.get_num_threads() == before


def test_a_generator_is_read_only_as_far_as_needed():
    taken = []
    results = side_by_side(lambda n: n, (taken.append(n) or n for n in range(1000)), workers=2)
    next(results)
    assert len(taken) <= 6
    results.close()


def test_an_error_of_the_work_is_raised():
    def work(n):
        if n == 3:
            raise ValueError("three")
        return n

    with pytest.raises(ValueError, match="three"):
        list(side_by_side(work, range(10), workers=2))
