"""A Ray that does not start, or cannot be reached, is one line."""

import pytest
import ray

from mlpt.config import RuntimeConfig
from mlpt.errors import UserError
from mlpt.runtime.cluster import ray_session


def test_a_ray_of_our_own_that_does_not_start_is_one_line(monkeypatch):
    def times_out(**settings):
        raise Exception("The current node timed out during startup. This could happen ...")  # as Ray 2.60 does

    monkeypatch.setattr(ray, "init", times_out)
    with (
        pytest.raises(UserError, match=r"Ray does not start on this machine \(The current node timed out") as raised,
        ray_session(RuntimeConfig(), cpus=1),
    ):
        pass
    assert "\n" not in str(raised.value)
