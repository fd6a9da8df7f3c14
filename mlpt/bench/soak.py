"""`mlpt bench soak`: one real run whose worker, meta-learner, driver and node are killed at random, again and again.

It runs on a cluster of this machine's processes: a head, and a node that holds the worker and the meta-learner; a node
that was killed is followed by a new one. What it must show: losses equal to those of the run that nobody disturbed, bit
for bit; no step lost beyond the last committed checkpoint; nothing left behind: processes, actors, placement groups,
shared memory, temporary files. What it measures: the seconds from each kill to the next new step.
"""

import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

import psutil

import mlpt
from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.errors import UserError
from mlpt.runtime.local_cluster import LocalCluster, Node
from mlpt.storage.checkpoint import Checkpoints
from mlpt.training.tracker import read_metrics

KILLS = 30
CHECKPOINT_EVERY = 50
STEPS_A_KILL = 500  # so that the run outlives its kills
SETTINGS = [
    *("data.max_bytes=300000", "data.vocab_size=500", "data.block_size=32"),
    *("model.hidden_size=64", "model.layers=2", "model.heads=2", "meta.interval=25", "meta.lag=10"),
    *("train.batch_size=16", "train.micro_batch_size=16", "train.log_every=1", "train.evaluate_batches=2"),
    *(f"train.checkpoint_every={CHECKPOINT_EVERY}", "train.evaluate_every=200", "train.schedule.shape=constant"),
    *("report.tensorboard=false", "report.progress=off", "runtime.max_failures=1000"),
]
PATIENCE_S = 300.0
_TO_REACH_RAY = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
_OF_THE_CLUSTER = {"_AutoscalingCoordinatorActor"}  # Ray keeps one for as long as the cluster lives

NODE_CPUS = 2  # of the worker and the meta-learner
SHARED_MEMORY = Path("/dev/shm")

Victim = Literal["worker", "meta-learner", "driver", "node"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)
WEIGHTS = (4, 3, 2, 2)  # how often each is drawn


@dataclass(frozen=True)
class Kill:
    """One kill: who, when, and the seconds until the run had made a step that it had not made before."""

    victim: Victim
    moment: str
    step: int
    seconds: float


def run(kills: int = KILLS, seed: int = 0) -> list[Row]:
    """Rows with the median and longest recovery of each victim, whether the losses are the same (1: yes), and leaks."""
    with tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as folder:
        before = _shared_memory()
        soak = Soak(Path(folder), steps=kills * STEPS_A_KILL)
        undisturbed = soak.undisturbed()
        try:
            suffered = soak.disturbed(kills, random.Random(seed))
            left = soak.held_by_ray()
        finally:
            soak.close()
        same = float(losses(undisturbed) == losses(soak.run_dir))
        left |= {"processes": soak.processes_left(), "temporary files": soak.files_left()}
        left["shared-memory segments"] = sorted(_shared_memory() - before)
        lost = soak.most_steps_repeated
    rows = [_row(f"{victim} killed: {what}", value, "s") for victim, what, value in _recoveries(suffered)]
    rows.append(_row(f"losses equal to the undisturbed run's, after {len(suffered)} kills (1: yes)", same, ""))
    rows.append(_row(f"most steps done twice after a kill (checkpoints every {CHECKPOINT_EVERY})", lost, "steps"))
    for what, found in left.items():
        if found:
            print(f"{what} left behind: {', '.join(map(str, found))}", file=sys.stderr)
    return rows + [_row(f"{what} left behind", len(found), "") for what, found in left.items()]


def losses(run_dir: Path) -> list[str]:
    """Every logged loss and mixture of a run, as text: equal only if equal to the last bit."""
    kept = ("step", "loss", "dev", "held_out", "held_out_before", "mixture")
    return [json.dumps([line.get(key) for key in kept]) for line in read_metrics(run_dir)]


class Soak:
    """The run under fire, its driver and what is known of its processes."""

    def __init__(self, folder: Path, steps: int):
        self.folder = folder
        self.run_dir = folder / "run"
        self.steps = steps
        self.mark = uuid4().hex  # in the environment of everything that the drivers start
        self.most_steps_repeated = 0
        self._driver: subprocess.Popen[bytes] | None = None
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self._environment = {"MLPT_SOAK": self.mark, "OMP_NUM_THREADS": "1", "TMPDIR": str(self._temporary)}
        self._environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # a cache, which stays by design
        here = str(Path(mlpt.__file__).parents[1])
        self._environment["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
        self._cluster: LocalCluster | None = None
        self._node: Node | None = None

    def undisturbed(self) -> Path:
        """The same run in one process, from beginning to end."""
        run_dir = self.folder / "undisturbed"
        driver = self._start("pretrain", *self._words(run_dir), "runtime.num_workers=0")
        if driver.wait() != 0:
            raise UserError(f"the undisturbed run failed: {self._said()}")
        return run_dir

    def disturbed(self, kills: int, draw: random.Random) -> list[Kill]:
        """Kill `kills` times, then let the run finish."""
        self._cluster = LocalCluster(self.folder, environment=self._environment)
        self._node = self._cluster.add_node(NODE_CPUS)
        self._environment |= {name: self._cluster.environment[name] for name in _TO_REACH_RAY}
        self._driver = self._start("pretrain", *self._words(self.run_dir), f"runtime.address={self._cluster.address}")
        suffered: list[Kill] = []
        self._wait_for(lambda: self._step() > 0)
        while len(suffered) < kills and self._step() < self.steps:
            victim = draw.choices(VICTIMS, weights=WEIGHTS)[0]
            moment = draw.choice(("at random", *_SIGNS))
            time.sleep(draw.uniform(0.5, 3.0))
            self._wait_for_moment(moment)
            suffered.append(self._kill(victim, moment))
        self._wait_for(lambda: self._driver is not None and self._driver.poll() is not None, ended=True)
        return suffered

    def held_by_ray(self) -> dict[str, list[Any]]:
        """Actors and placement groups that the cluster still has half a minute after the run's end."""
        assert self._cluster is not None
        deadline = time.monotonic() + 30
        while True:
            alive = [one["class_name"] for one in self._cluster.state("actors") if one["state"] != "DEAD"]
            actors = [name for name in alive if name not in _OF_THE_CLUSTER]
            groups = self._cluster.state("placement_groups")
            held = [one["placement_group_id"] for one in groups if one["state"] != "REMOVED"]
            if time.monotonic() > deadline or not (actors or held):
                return {"actors": actors, "placement groups": held}
            time.sleep(0.5)

    def files_left(self) -> list[str]:
        """Temporary files of the drivers and workers, half-written checkpoints, and Ray Train's own folder."""
        found = [*self._temporary.iterdir(), *self.run_dir.glob(".ray"), *self.run_dir.rglob("*.partial*")]
        return [str(path) for path in found]

    def close(self) -> None:
        """End the driver, if it is still there, and the cluster."""
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        if self._cluster is not None:
            self._cluster.close()

    def processes_left(self) -> list[int]:
        """Processes of this soak that are still there half a minute after its end."""
        deadline = time.monotonic() + 30
        while (left := list(self._mine())) and time.monotonic() < deadline:
            time.sleep(0.5)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    def _kill(self, victim: Victim, moment: str) -> Kill:
        reached = self._step()
        begun = time.monotonic()
        if victim == "driver":
            assert self._driver is not None
            worker = self._pid("rank_0")
            self._driver.kill()
            self._driver.wait()
            self._wait_for(lambda: worker is None or not psutil.pid_exists(worker), ended=True)
            # Ray ends the orphans within seconds, in which they still train; a person restarts after that.
            reached, begun = self._step(), time.monotonic()
            saved = Checkpoints(self.run_dir / "checkpoints").steps()
            self._driver = self._start("pretrain", "--resume", str(self.run_dir), *([] if saved else ["--restart"]))
        elif victim == "node":
            assert self._cluster is not None
            assert self._node is not None
            self._node.kill()
            reached, begun = self._step(), time.monotonic()
            self._node = self._cluster.add_node(NODE_CPUS)
        else:
            pid = self._pid("rank_0" if victim == "worker" else "meta_learner")
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        # A killed learner is missed when its next answer is due: at most an interval and a lag later.
        goal = min(self.steps, reached + (40 if victim == "meta-learner" else 1))
        pause = self._longest_pause_until(goal, begun)
        return Kill(victim, moment, reached, pause if victim == "meta-learner" else time.monotonic() - begun)

    def _longest_pause_until(self, goal: int, begun: float) -> float:
        last_step, last_time, longest = self._step(), begun, 0.0
        deadline = time.monotonic() + PATIENCE_S
        while (step := self._step()) < goal:
            now = time.monotonic()
            if step != last_step:
                if step < last_step:
                    self.most_steps_repeated = max(self.most_steps_repeated, last_step - step)
                last_step, last_time = step, now
            longest = max(longest, now - last_time)
            self._restart_if_it_gave_up()
            if now > deadline:
                raise UserError(f"the soak's run made no step for {PATIENCE_S:.0f} s after a kill: {self._said()}")
            time.sleep(0.02)
        return longest

    def _restart_if_it_gave_up(self) -> None:
        assert self._driver is not None
        if self._driver.poll() not in (None, 0):
            raise UserError(f"the run gave up after a kill: {self._said()}")

    def _wait_for_moment(self, moment: str) -> None:
        sign = _SIGNS.get(moment)
        deadline = time.monotonic() + 20
        while sign is not None and not sign(self.run_dir) and time.monotonic() < deadline:
            time.sleep(0.002)

    def _wait_for(self, condition: Callable[[], bool], ended: bool = False) -> None:
        deadline = time.monotonic() + PATIENCE_S * (10 if ended else 1)
        while not condition():
            if time.monotonic() > deadline or (not ended and self._driver is not None and self._driver.poll()):
                raise UserError(f"the soak's run is stuck or failed: {self._said()}")
            time.sleep(0.05)

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self._environment}
        with open(self.folder / "driver.txt", "ab") as output:
            command = [sys.executable, "-m", "mlpt", *words]
            return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def _words(self, run_dir: Path) -> list[str]:
        return ["quickstart", *SETTINGS, f"train.steps={self.steps}", f"run_dir={run_dir}"]

    def _said(self) -> str:
        lines = (self.folder / "driver.txt").read_text().strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _step(self) -> int:
        """The last step in metrics.jsonl."""
        path = self.run_dir / "metrics.jsonl"
        if not path.is_file():
            return 0
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            found = re.findall(rb'^\{"step": (\d+),', file.read(), re.MULTILINE)
        return int(found[-1]) if found else 0

    def _pid(self, log: str) -> int | None:
        path = self.run_dir / "logs" / f"{log}.log"
        found = re.findall(r"process (\d+)", path.read_text()) if path.is_file() else []
        return int(found[-1]) if found else None

    def _mine(self) -> Iterator[int]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("MLPT_SOAK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process.pid


def _shared_memory() -> set[str]:
    return set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.is_dir() else set()


def _partial_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob(".partial_*"))


def _answer_awaited(run_dir: Path) -> bool:
    """Some steps after a launch, before its adoption."""
    lines = _last_lines(run_dir)
    return bool(lines) and 0 < lines[-1].get("step", 0) % 25 < 10


def _evaluated(run_dir: Path) -> bool:
    return any("dev" in line for line in _last_lines(run_dir)[-2:])


def _last_lines(run_dir: Path) -> list[dict[str, Any]]:
    lines = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines()[-3:]:
        with contextlib.suppress(ValueError):  # the last may be half written
            lines.append(json.loads(line))
    return lines


_SIGNS: dict[str, Callable[[Path], bool]] = {
    "while a checkpoint is written": _partial_checkpoint,
    "while an answer is awaited": _answer_awaited,
    "after an evaluation": _evaluated,
}


def _recoveries(kills: list[Kill]) -> Iterator[tuple[str, str, float]]:
    for victim in VICTIMS:
        seconds = [kill.seconds for kill in kills if kill.victim == victim]
        what = "longest pause of training" if victim == "meta-learner" else "until the next new step"
        if seconds:
            yield victim, f"{what}, median of {len(seconds)}", statistics.median(seconds)
            yield victim, f"{what}, longest", max(seconds)


def _row(name: str, value: float, unit: str) -> Row:
    return Row("soak", name, value, None, None, unit, peak_bytes(), machine())
