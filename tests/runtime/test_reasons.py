"""The line that people get about a training that Ray could not end."""

import ray
from ray.exceptions import RayActorError

from mlpt.errors import CrashError, UserError
from mlpt.runtime.trainer import why_failed


class _Hub:
    """Stands in for the hub's handle: a rank has told it `said`, or it died."""

    def __init__(self, said):
        self._said = said

    @property
    def error(self):
        return self

    def remote(self):
        if isinstance(self._said, Exception):
            raise self._said
        return self._said


def test_ray_s_reason_is_one_line_without_its_guesses():
    died = RuntimeError(
        "The worker died unexpectedly.\n\tactor_id: 1234\n\n"
        "  The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer.\n"
    )
    found = why_failed(died, _Hub(RayActorError()), "see runs/one/logs")
    assert isinstance(found, CrashError)
    assert str(found) == "training failed: The actor is dead because its worker process has died; see runs/one/logs"
    assert str(why_failed(RuntimeError(), _Hub(RayActorError()), "go on")) == "training failed: RuntimeError; go on"


def test_what_a_rank_said_goes_before_ray_s_reason(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda said, timeout: said)
    found = why_failed(RuntimeError("a worker died"), _Hub("the loss was not finite at step 7"), "go on")
    assert type(found) is UserError
    assert str(found) == "the loss was not finite at step 7"
