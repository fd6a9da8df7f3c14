"""What this process may use of the machine."""

import os


def available_cores() -> int:
    """CPU cores; fewer than the machine has where the process was bound to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
