"""Tasks that wait for others, done side by side: one that fails is told, and stops only those that need it."""

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from mlpt.errors import UserError, system_error, told


@dataclass(frozen=True)
class Task:
    """A piece of work: `act` raises `UserError` where it fails. `needs`: the tasks that must be done before."""

    name: str
    act: Callable[[], None]
    needs: tuple[Hashable, ...] = ()


class Graph:
    """Runs tasks, at most `at_once` of them at a time, the first of those that can begin first."""

    def __init__(self, tasks: Mapping[Hashable, Task], at_once: int):
        self.tasks = dict(tasks)
        self.at_once = at_once
        self.done: set[Hashable] = set()
        self.failed: dict[Hashable, str] = {}  # with the reason

    def run(self, ended: Callable[[Hashable], None], stop: Callable[[], None]) -> None:
        """Do all that can be done. `ended` hears of each task as it is done or has failed; `stop` ends those under way
        when this is interrupted."""
        waiting = dict(self.tasks)
        under_way: dict[Future[None], Hashable] = {}
        with ThreadPoolExecutor(self.at_once, thread_name_prefix="study") as pool:
            try:
                while waiting or under_way:
                    for key in self._blocked(waiting):
                        waiting.pop(key)
                        ended(key)
                    ready = [key for key, task in waiting.items() if self.done.issuperset(task.needs)]
                    for key in ready[: self.at_once - len(under_way)]:
                        under_way[pool.submit(waiting.pop(key).act)] = key
                    finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in finished:
                        key = under_way.pop(future)
                        self._note(key, future.exception())
                        ended(key)
            except BaseException:
                stop()
                raise

    def _blocked(self, waiting: Mapping[Hashable, Task]) -> list[Hashable]:
        """Tasks whose needs have failed, noted as failed."""
        blocked = []
        for key, task in waiting.items():
            for need in task.needs:
                if need in self.failed:
                    reason = self.failed[need]
                    is_first = not reason.startswith("needs ")
                    self.failed[key] = f"needs {self.tasks[need].name}: {reason}" if is_first else reason
                    blocked.append(key)
                    break
        return blocked

    def _note(self, key: Hashable, error: BaseException | None) -> None:
        if error is None:
            self.done.add(key)
            return
        trouble = system_error(error)
        if not isinstance(error, UserError) and trouble is None:
            raise error
        self.failed[key] = str(error) if trouble is None else told(trouble)
