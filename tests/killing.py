"""A run whose process ends at a step, without a process of its own to end."""

from collections.abc import Callable


class KilledError(Exception):
    """Stands for a process that ends here."""


def killed_at(step: int) -> Callable[[int], bool]:
    """The `must_save` of a run that is killed before `step`."""

    def must_save(now: int) -> bool:
        if now == step:
            raise KilledError
        return False

    return must_save
