"""`mlpt bench faults`: every kind of work under every kind of fault, five a run, at random moments.

Each run must end with the curves, results, tensors and scores of the run that nobody disturbed, bit for bit; each end
of a command must be one line and a documented exit code; nothing may be left behind.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import mlpt
from mlpt.bench import kinds_of_fault, kinds_of_work
from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.bench.kinds_of_fault import Fault, Victim, mounted, unmount
from mlpt.bench.kinds_of_work import Work, end_of, progress
from mlpt.errors import UserError

FAULTS = 60
A_RUN = 5
PATIENCE_S = 900.0
_GONE_S = 60.0
_OF_RAY = ("ray", "_ray_lockfiles")  # its logs, and the files by which its processes lock; they stay by design
_TOO_BUSY = "Ray does not start on this machine"
_NEARLY_DONE = 0.8  # from here on, the work may end before a fault can end it
_AT_THE_START = 0.2  # share of faults that come while the work starts, or starts again


@dataclass(frozen=True)
class Struck:
    """One fault. `seconds` passed until the work had got further than before; `code` is the command's if it ended."""

    work: str
    fault: str
    moment: str
    seconds: float
    code: int | None
    found: str  # what was not as promised


def run(faults: int = FAULTS, seed: int = 0, folder: str | None = None) -> list[Row]:
    """Rows with the number of faults and kinds, and what was not as promised.

    folder  keeps inputs, ends of undisturbed runs and what was done so far (`faults.jsonl`), from which it goes on.
    """
    with tempfile.TemporaryDirectory(prefix="faults", dir="/tmp") as temporary:
        soak = Soak(Path(folder or temporary))
        struck = soak.disturb(faults, seed)
    kinds = {one.fault for one in struck}
    wrong = [one for one in struck if one.found]
    for one in wrong:
        print(f"{one.work}; {one.fault} {one.moment}: {one.found}", file=sys.stderr)
    return [
        _row("faults", len(struck)),
        _row("kinds of fault", len(kinds)),
        _row("kinds of work", len({one.work for one in struck})),
        _row("faults after which something was not as promised", len(wrong)),
    ]


class Soak:
    """Runs of every kind of work, one after another."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._done = self.folder / "faults.jsonl"
        here = str(Path(mlpt.__file__).parents[1])
        paths = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        self._environment["XDG_CACHE_HOME"] = str(folder / "cache")
        self._environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # a cache, which stays by design
        # Ray lets its workers wait for everything else on the machine, which here may be much.
        self._environment["RAY_worker_niceness"] = "0"

    def disturb(self, faults: int, seed: int) -> list[Struck]:
        """Go on until there are so many faults."""
        works = self._works()
        struck = self.read()
        done = {(line["run"]) for line in self._lines()}
        for number, (work, chosen, draw) in enumerate(plan(works, seed)):
            if len(struck) >= faults:
                break
            if number not in done:
                found = self.one_run(number, work, chosen, draw)
                with open(self._done, "a") as file:
                    for one in found:
                        file.write(json.dumps({"run": number, **asdict(one)}) + "\n")
                struck += found
        return struck

    def read(self) -> list[Struck]:
        """What was done so far."""
        return [Struck(**{key: value for key, value in line.items() if key != "run"}) for line in self._lines()]

    def one_run(self, number: int, work: Work, faults: Sequence[Fault], draw: random.Random) -> list[Struck]:
        """One run of `work`, which has to endure `faults` one after another."""
        calm = self._undisturbed(work)
        place = Path(tempfile.mkdtemp(prefix="f", dir="/tmp"))  # Ray's sockets lie below it: a short path
        has_disk = mounted(place / "disk")
        (place / "tmp").mkdir()
        out = place / "disk" / "out"
        victim = Victim(work, out, uuid4().hex)
        environment = {**self._environment, "MLPT_SOAK": victim.mark, "TMPDIR": str(place / "tmp")}
        one = Disturbed(victim, environment, self.folder / f"run-{number}.txt", total=calm["steps"])
        try:
            struck = one.endure(faults, draw)
            wrong = one.differs(calm["end"])
        finally:
            one.close()
            if has_disk:
                unmount(place / "disk")
        wrong += one.left_behind(place / "tmp")
        subprocess.run(["rm", "-rf", str(place)], check=False)
        return [Struck(**{**asdict(each), "found": each.found or wrong}) for each in struck]

    def _works(self) -> list[Work]:
        model = self.folder / "model"
        if not (model / "summary.json").is_file():
            self._complete(kinds_of_work.first_words(model))
            kinds_of_work.write_inputs(self.folder)
        blocks = json.loads((model / "blocks.json").read_text())["blocks"]
        return kinds_of_work.every_kind(self.folder, blocks)

    def _undisturbed(self, work: Work) -> dict:
        kept = self.folder / "undisturbed" / f"{work.name}.json"
        if not kept.is_file():
            with tempfile.TemporaryDirectory(prefix="calm", dir="/tmp") as folder:
                out = Path(folder) / "out"
                self._complete([*work.words(out), *work.calm])
                found = {"steps": progress(out), "end": end_of(out)}
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(found))
        return json.loads(kept.read_text())

    def _complete(self, words: Sequence[str]) -> None:
        done = subprocess.run(_mlpt(words), env=self._environment, capture_output=True, text=True, cwd=self.folder)
        if done.returncode != 0:
            raise UserError(f"`mlpt {words[0]}`, undisturbed, failed: {(done.stderr + done.stdout).strip()[-500:]}")

    def _lines(self) -> list[dict]:
        return [json.loads(line) for line in self._done.read_text().splitlines()] if self._done.is_file() else []


class Disturbed:
    """One run under fire. What its commands say goes to `output`."""

    def __init__(self, victim: Victim, environment: dict[str, str], output: Path, total: int):
        self._victim, self._environment, self._output, self._total = victim, environment, output, total
        self._said_before = 0

    def endure(self, faults: Sequence[Fault], draw: random.Random) -> list[Struck]:
        """Strike with each fault in turn, each time until the work has got further, and let it end.

        A fault that finds nothing to strike, because the work is done, is none.
        """
        struck: list[Struck] = []
        late: tuple[int, ...] = ()
        self._start(self._victim.work.words(self._victim.out))
        for number, fault in enumerate(faults):
            moment = self._wait_for_a_moment(draw, (number + draw.random()) / (len(faults) + 0.5))
            begun, code, found, before = time.monotonic(), None, "", progress(self._victim.out)
            must_end = bool(fault.codes) and not fault.may_go_on
            try:
                if not fault.strike(self._victim, draw):
                    self._mend()
                    continue
                reached = progress(self._victim.out)  # a step may have ended between the moment and the fault
                code = self._further_than(reached, fault.codes, must_end)
                if must_end and code is None and before < _NEARLY_DONE * self._total:
                    raise UnexpectedError("the command went on as if nothing had been")
            except (UnexpectedError, subprocess.TimeoutExpired, OSError) as error:
                found = str(error)
            name = self._victim.work.name
            late = fault.codes if fault.may_go_on else ()
            struck.append(Struck(name, fault.name, moment, round(time.monotonic() - begun, 1), code, found))
            print(json.dumps(asdict(struck[-1])), flush=True)
            if found:
                return struck
        try:
            self._further_than(None, late)  # a last step may have ended before the command did
        except UnexpectedError as error:
            if not struck:
                raise UserError(f"{self._victim.work.name}, before any fault: {error}") from error
            struck[-1] = Struck(**{**asdict(struck[-1]), "found": str(error)})
        return struck

    def differs(self, calm: dict[str, list[str]]) -> str:
        """What is not as in the undisturbed run."""
        end = end_of(self._victim.out)
        names = [name for name in sorted(calm.keys() | end.keys()) if calm.get(name) != end.get(name)]
        return f"not as undisturbed: {', '.join(names)}. " if names else ""

    def left_behind(self, temporary: Path) -> str:
        """Processes that are there a minute after the end, and temporary files."""
        deadline = time.monotonic() + _GONE_S
        while (left := self._victim.processes()) and time.monotonic() < deadline:
            time.sleep(0.5)
        found = [f"process {one.pid} {' '.join(one.cmdline())[:60].strip()}" for one in left]
        for one in left:
            one.kill()
        found += [str(path) for path in temporary.iterdir() if path.name not in _OF_RAY]
        return f"left behind: {', '.join(found)}. " if found else ""

    def close(self) -> None:
        """End the command, if it is still there."""
        if self._victim.command.poll() is None:
            self._victim.command.kill()
            self._victim.command.wait()

    def _start(self, words: Sequence[str]) -> None:
        self._begun = time.monotonic()
        self._said_before = self._output.stat().st_size if self._output.is_file() else 0
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script; children inherit it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(self._output, "ab") as output:
            self._victim.command = subprocess.Popen(
                _mlpt(words),
                env=self._environment,
                cwd=self._victim.out.parent.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._victim.sessions.add(self._victim.command.pid)

    def _wait_for_a_moment(self, draw: random.Random, share: float) -> str:
        if draw.random() < _AT_THE_START:
            seconds = draw.uniform(0.5, 10.0)
            self._wait(lambda: time.monotonic() - self._begun > seconds)
            return f"{seconds:.1f} s after its command began"
        goal = round(share * self._total)
        self._wait(lambda: progress(self._victim.out) >= goal)
        return f"after {100 * share:.0f} %"

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition() and self._victim.command.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    def _further_than(self, reached: int | None, codes: Sequence[int], must_end: bool = False) -> int | None:
        """Wait until the work has got further (None: has ended), going on with it once if it ended by the fault."""
        ended = None
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            code = self._victim.command.poll()
            if code == 0:
                self._mend()
                return ended
            if code == 2 and _TOO_BUSY in self._said():
                self._start(self._victim.work.words_to_go_on(self._victim.out))
            elif code is not None:
                self._check(code, codes if ended is None else ())
                ended = code
                if reached is not None:
                    reached = max(reached, progress(self._victim.out))
                self._mend()
                self._start(self._victim.work.words_to_go_on(self._victim.out))
            further = reached is not None and progress(self._victim.out) > reached
            if further and (ended is not None or not must_end):
                return ended
            time.sleep(0.05)
        raise UnexpectedError(f"no further for {PATIENCE_S:.0f} s: {self._said()[-200:]}")

    def _mend(self) -> None:
        self._victim.mend()
        self._victim.mend = lambda: None

    def _check(self, code: int, codes: Sequence[int]) -> None:
        said = self._said()
        if code not in codes:
            raise UnexpectedError(f"the command ended with exit code {code}: {said[-300:]}")
        if "Traceback" in said:
            raise UnexpectedError(f"a traceback: {said[-300:]}")
        if code > 0 and not said.strip().splitlines()[-1:][0].startswith("mlpt: "):
            raise UnexpectedError(f"the end is not one line: {said[-300:]}")

    def _said(self) -> str:
        return self._output.read_bytes()[self._said_before :].decode(errors="replace")


class UnexpectedError(Exception):
    """Something was not as promised."""


def plan(works: Sequence[Work], seed: int) -> Iterator[tuple[Work, list[Fault], random.Random]]:
    """Runs without end: works in turn, each with the faults that it has met the fewest times, in random order."""
    left: dict[str, list[Fault]] = {work.name: [] for work in works}
    met: dict[str, int] = {}
    number = 0
    while True:
        for work in works:
            draw = random.Random(f"{seed}/{number}")
            chosen = []
            for _ in range(A_RUN):
                if not left[work.name]:
                    left[work.name] = [one for one in kinds_of_fault.every_kind() if one.fits(work)]
                fault = min(left[work.name], key=lambda one: (met.get(one.name, 0), draw.random()))
                left[work.name].remove(fault)
                met[fault.name] = met.get(fault.name, 0) + 1
                chosen.append(fault)
            yield work, chosen, draw
            number += 1


def _mlpt(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "mlpt", *words]


def _row(name: str, value: float) -> Row:
    return Row("faults", name, value, None, None, "", peak_bytes(), machine())
