"""What `mlpt bench faults` does to work under way: signals to each of its processes, and troubles of its disk."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlpt.bench.kinds_of_work import Work

PAUSE_S = 10.0
DISK_BYTES = 64 << 20
_PATIENCE_S = 60.0
_KILL, _STOP, _TERM, _INT = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT


class Victim:
    """Work under way: its command, the folder that it writes to, and the processes that belong to it."""

    def __init__(self, work: Work, out: Path, mark: str):
        self.work, self.out, self.mark = work, out, mark
        self.command: subprocess.Popen[bytes]
        self.sessions: set[int] = set()  # of its commands; Ray's agents hide their environment behind their titles
        self.mend: Callable[[], None] = lambda: None  # to be called before the work can go on

    def is_there(self) -> bool:
        """Whether its command has not ended."""
        return self.command.poll() is None

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Those whose title or name begins so."""
        return [one for one in self._mine() if _title(one).startswith(title)]

    def signal(self, title: str, number: signal.Signals, draw: random.Random | None = None) -> list[psutil.Process]:
        """Send a signal to the processes of a title, as soon as there are any; to one of them, if it is to be drawn."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (found := self.processes(title)) and self.command.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if draw is not None and found:
            found = [draw.choice(found)]
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)
        return found

    def _mine(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                is_mine = os.getsid(process.pid) in self.sessions or process.environ().get("MLPT_SOAK") == self.mark
                if is_mine and process.status() != psutil.STATUS_ZOMBIE:
                    yield process


Strike = Callable[[Victim, random.Random], bool]


@dataclass(frozen=True)
class Fault:
    """One kind: what it does, with which exit codes the command ends by it (none: it goes on), which work it fits.

    strike     False if there was nothing to do it to, such as a process that has ended.
    may_go_on  the command need not end.
    """

    name: str
    strike: Strike
    codes: tuple[int, ...] = ()
    fits: Callable[[Work], bool] = lambda work: True
    may_go_on: bool = False


def every_kind() -> list[Fault]:
    """All kinds."""
    by_ray, learns = (lambda work: bool(work.workers)), (lambda work: work.learns)
    trains = lambda work: work.trains_by_ray  # noqa: E731
    return [
        Fault("worker, SIGKILL", _one_worker(_KILL), fits=by_ray),
        Fault("worker, SIGTERM", _one_worker(_TERM), fits=by_ray),
        Fault("worker, SIGSTOP for good", _one_worker(_STOP), fits=trains),
        Fault("worker, stopped for 10 s", _pause_worker, fits=by_ray),
        Fault("meta-learner, SIGKILL", _to("ray::MetaLearner", _KILL), fits=learns),
        Fault("meta-learner, SIGSTOP for good", _to("ray::MetaLearner", _STOP), fits=learns),
        Fault("hub, SIGKILL", _to("ray::Hub", _KILL), (2,), trains, may_go_on=True),
        Fault("hub, SIGSTOP for good", _to("ray::Hub", _STOP), fits=trains),
        Fault("Ray Train's controller, SIGKILL", _to("ray::TrainController", _KILL), (2,), trains, may_go_on=True),
        Fault("command, SIGKILL", _command(_KILL), (-_KILL,)),
        Fault("command, SIGTERM", _command(_TERM), (128 + _TERM, -_TERM)),
        Fault("command, SIGINT", _command(_INT), (128 + _INT,)),
        Fault("command, stopped for 10 s", _pause_command),
        Fault("command and all its processes, SIGTERM", _group(_TERM), (128 + _TERM, -_TERM)),
        Fault("all processes at once, SIGKILL", _all_killed, (-_KILL,)),
        Fault("raylet, SIGKILL", _to("raylet", _KILL), (2,), by_ray),
        Fault("GCS, SIGKILL", _to("gcs_server", _KILL), (2,), by_ray),
        Fault("raylet, stopped for 10 s", _pause("raylet"), fits=by_ray),
        Fault("GCS, stopped for 10 s", _pause("gcs_server"), fits=by_ray),
        Fault("an agent of Ray, SIGKILL", _to("ray::RuntimeEnvAgent", _KILL), (2,), by_ray),
        Fault("newest checkpoint cut short, all processes killed", _cut_short, (-_KILL,)),
        Fault("metrics cut short, all processes killed", _metrics_cut, (-_KILL,)),
        Fault("a file where the folder of checkpoints was", _in_the_way, (2,), lambda work: not work.has_trials),
        Fault("full disk", _fill_disk, (2,)),
    ]


def mounted(folder: Path) -> bool:
    """Make `folder` a small disk of its own; False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        return subprocess.run(words, capture_output=True).returncode == 0
    return False


def unmount(folder: Path) -> None:
    """The end of a disk that `mounted` made."""
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def _title(process: psutil.Process) -> str:
    words = process.cmdline()
    return words[0] if words and words[0].startswith("ray::") else process.name()


def _to(title: str, number: signal.Signals) -> Strike:
    def strike(victim: Victim, draw: random.Random) -> bool:
        return bool(victim.signal(title, number))

    return strike


def _one_worker(number: signal.Signals) -> Strike:
    def strike(victim: Victim, draw: random.Random) -> bool:
        return bool(victim.signal(f"ray::{victim.work.workers}", number, draw))

    return strike


def _pause(title: str) -> Strike:
    def strike(victim: Victim, draw: random.Random) -> bool:
        return _let_go(victim.signal(title, _STOP))

    return strike


def _pause_worker(victim: Victim, draw: random.Random) -> bool:
    return _let_go(victim.signal(f"ray::{victim.work.workers}", _STOP, draw))


def _pause_command(victim: Victim, draw: random.Random) -> bool:
    if not victim.is_there():
        return False
    victim.command.send_signal(_STOP)
    return _let_go([psutil.Process(victim.command.pid)])


def _let_go(stopped: list[psutil.Process]) -> bool:
    if stopped:
        time.sleep(PAUSE_S)
    for one in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGCONT)
    return bool(stopped)


def _command(number: signal.Signals) -> Strike:
    def strike(victim: Victim, draw: random.Random) -> bool:
        was_there = victim.is_there()
        victim.command.send_signal(number)
        victim.command.wait(timeout=300)
        return was_there

    return strike


def _group(number: signal.Signals) -> Strike:
    def strike(victim: Victim, draw: random.Random) -> bool:
        was_there = victim.is_there()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(victim.command.pid, number)
        victim.command.wait(timeout=300)
        return was_there

    return strike


def _all_killed(victim: Victim, draw: random.Random) -> bool:
    """As when the power fails, except that the disks have all that was written."""
    was_there = victim.is_there()
    while found := victim.processes():
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        victim.command.wait()
    return was_there


def _cut_short(victim: Victim, draw: random.Random) -> bool:
    pattern = "parts/*.arrow" if victim.work.saves == "parts" else "checkpoints/step_*/*"
    _wait_for(victim, pattern)
    if not _all_killed(victim, draw):
        return False
    found = sorted(victim.out.rglob(pattern), key=lambda path: path.stat().st_mtime_ns)
    if found:
        _halve(draw.choice([path for path in found if path.parent == found[-1].parent][-4:]))
    return bool(found)


def _metrics_cut(victim: Victim, draw: random.Random) -> bool:
    if not _all_killed(victim, draw):
        return False
    found = sorted(victim.out.rglob("metrics.jsonl"))[-1:]
    for path in found:
        with open(path, "ab") as file:
            file.truncate(max(0, path.stat().st_size - draw.randint(1, 60)))
    return bool(found)


def _in_the_way(victim: Victim, draw: random.Random) -> bool:
    """A folder that cannot be written, also by root: what is there is a file."""
    for folder in _wait_for(victim, victim.work.saves)[-1:]:
        aside = folder.with_name("aside")
        with contextlib.suppress(FileNotFoundError):  # the work has just ended
            folder.rename(aside)
            folder.write_text("in the way")

            def mend(folder: Path = folder, aside: Path = aside) -> None:
                folder.unlink(missing_ok=True)  # the command may have cleared its place
                aside.rename(folder)

            victim.mend = mend
            return victim.is_there()
    return False


def _fill_disk(victim: Victim, draw: random.Random) -> bool:
    """Only where `victim.out` lies on a disk of its own."""
    ballast = victim.out.parent / "ballast"
    if not ballast.parent.is_mount() or not victim.is_there():
        return False
    victim.mend = lambda: ballast.unlink(missing_ok=True)
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    return True


def _wait_for(victim: Victim, pattern: str) -> list[Path]:
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := sorted(victim.out.rglob(pattern))):
        if victim.command.poll() is not None or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return found


def _halve(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
