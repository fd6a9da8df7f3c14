"""Tasks side by side: order, failure, interruption."""

import threading

import pytest

from mlpt.errors import UserError
from mlpt.studies.graph import Graph, Task


def fails():
    raise UserError("no such luck")


def test_tasks_wait_for_what_they_need_and_a_failure_stops_only_those_behind_it():
    done = []
    tasks = {
        "c": Task("the third", lambda: done.append("c"), ("b",)),
        "b": Task("the second", lambda: done.append("b"), ("a",)),
        "a": Task("the first", lambda: done.append("a")),
        "bad": Task("the bad one", fails),
        "behind": Task("behind it", lambda: done.append("behind"), ("bad", "a")),
        "far behind": Task("far behind it", lambda: done.append("far"), ("behind",)),
    }
    graph, ended = Graph(tasks, 2), []
    graph.run(ended.append, lambda: None)
    assert done == ["a", "b", "c"]
    assert graph.done == {"a", "b", "c"}
    assert graph.failed == {
        "bad": "no such luck",
        "behind": "needs the bad one: no such luck",
        "far behind": "needs the bad one: no such luck",
    }
    assert sorted(ended) == sorted(tasks)


def test_no_more_than_so_many_are_under_way():
    both = threading.Barrier(2, timeout=60)  # breaks unless two are under way together
    under_way, most, lock = set(), [0], threading.Lock()

    def act(name):
        with lock:
            under_way.add(name)
            most[0] = max(most[0], len(under_way))
        both.wait()
        with lock:
            under_way.discard(name)

    graph = Graph({name: Task(str(name), lambda name=name: act(name)) for name in range(6)}, 2)
    graph.run(lambda key: None, lambda: None)
    assert most[0] == 2
    assert len(graph.done) == 6


def test_full_disks_are_failures_and_programming_errors_are_not():
    def full():
        raise OSError(28, "No space left on device", "run/metrics.jsonl")

    graph = Graph({"full": Task("a full disk", full)}, 1)
    graph.run(lambda key: None, lambda: None)
    assert "the disk is full" in graph.failed["full"]

    def wrong():
        raise ZeroDivisionError

    stopped = []
    with pytest.raises(ZeroDivisionError):
        Graph({"wrong": Task("a mistake", wrong)}, 1).run(lambda key: None, lambda: stopped.append(True))
    assert stopped == [True]
