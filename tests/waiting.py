"""Waiting for what another process does."""

import time


def wait_until(condition, timeout=300.0, every=0.1):
    """Poll for something that another process does; fails with what was waited for."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {condition}"
        time.sleep(every)
    return found
