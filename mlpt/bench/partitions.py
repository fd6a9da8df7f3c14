"""`mlpt bench partitions`: runs between whose nodes all traffic is dropped for 30 s, at random moments.

One node is this machine, the other a namespace with a network of its own (`mlpt.runtime.namespaces`); the disk is
shared. Either the meta-learner is on the other side than the worker, or each side has a worker. Ray waits for the node
that it does not hear of (its own settings), or gives it up after about 5 s (`LocalCluster`'s): another one then joins
when the network is back. Every run must end as one that nobody disturbed, bit for bit, and leave nothing behind.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlpt.bench.harness import Row, machine, peak_bytes
from mlpt.bench.soak import SETTINGS, Soak, losses
from mlpt.errors import UserError
from mlpt.runtime.local_cluster import LocalCluster
from mlpt.runtime.namespaces import Namespace, namespace

PARTITIONS = 20
DROPPED_S = 30.0
STEPS = 400
A_RUN = 5
PATIENCE_S = 400.0
RAYS_OWN = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}
APART: dict[str, list[str]] = {
    "worker | meta-learner": [],
    "worker | worker": ["runtime.num_workers=2", "train.micro_batch_size=8", "meta.rules={mixture: {rule: uniform}}"],
}


@dataclass(frozen=True)
class Partition:
    """One: `seconds` passed from the network's return until the run had got further; `node` says what became of it."""

    apart: str
    given_up: bool
    step: int
    seconds: float
    node: str
    found: str


def run(
    partitions: int = PARTITIONS, seed: int = 0, folder: str | None = None, dropped: float = DROPPED_S
) -> list[Row]:
    """Rows with the number of partitions and what was not as promised.

    folder  keeps what was done so far (`partitions.jsonl`), from which it goes on.
    """
    with tempfile.TemporaryDirectory(prefix="cut", dir="/tmp") as temporary:
        place = Path(folder or temporary)
        kept = place / "partitions.jsonl"
        done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
        while len(done) < partitions:
            number = len({line["run"] for line in done})
            for one in one_run(number, min(A_RUN, partitions - len(done)), seed, dropped, place):
                done.append({"run": number, **asdict(one)})
                with open(kept, "a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    wrong = [line for line in done if line["found"]]
    for line in wrong:
        print(f"{line['apart']}: {line['found']}", file=sys.stderr)
    return [_row("partitions", len(done)), _row("partitions after which something was not as promised", len(wrong))]


def one_run(number: int, count: int, seed: int, dropped: float, kept: Path) -> list[Partition]:
    """The run of that number, which has to endure `count` partitions, on a cluster of its own.

    kept  folder with the losses of undisturbed runs.
    """
    apart, given_up, draw = list(APART)[number % 2], number % 4 >= 2, random.Random(f"{seed}/{number}")
    with tempfile.TemporaryDirectory(prefix="cut", dir="/tmp") as folder, namespace() as network:
        soak = Parted(Path(folder), apart, given_up, network)
        calm = kept / f"undisturbed-{number % 2}.json"
        if not calm.is_file():
            calm.write_text(json.dumps(losses(soak.undisturbed())))
        try:
            suffered = soak.parted(count, draw, dropped)
            left = soak.held_by_ray()
        finally:
            soak.close()
        left |= {"processes": soak.processes_left(), "temporary files": soak.files_left()}
        found = [f"{what} left behind: {', '.join(map(str, some))}" for what, some in left.items() if some]
        if json.loads(calm.read_text()) != losses(soak.run_dir):
            found.append("losses differ")
    return [Partition(**{**asdict(one), "found": "; ".join(found)}) for one in suffered]


class Parted(Soak):
    """A run whose two nodes lose sight of each other."""

    def __init__(self, folder: Path, apart: str, given_up: bool, network: Namespace):
        super().__init__(folder, STEPS)
        self._apart, self._given_up, self._network = apart, given_up, network
        self._calm_on_ray = len(APART[apart]) > 0
        self._looked = 0.0

    def undisturbed(self) -> Path:
        """The same run with nothing between its processes; several workers sum as they do when they are apart."""
        if not self._calm_on_ray:
            return super().undisturbed()
        run_dir = self.folder / "undisturbed"
        if self._start("pretrain", *self._words(run_dir)).wait() != 0:
            raise UserError(f"the undisturbed run failed: {self._said()}")
        shutil.rmtree(self._temporary / "ray", ignore_errors=True)  # a local Ray keeps its logs; a cluster's go
        return run_dir

    def parted(self, count: int, draw: random.Random, dropped: float) -> list[Partition]:
        """Cut the network `count` times, then let the run finish."""
        environment = {**self._environment, "GLOO_SOCKET_IFNAME": self._network.links[0]}
        environment |= {} if self._given_up else RAYS_OWN
        self._cluster = LocalCluster(self.folder, 1, environment, host=self._network.outer)
        self._node = self._cluster.add_node(1, self._network)
        self._environment |= {
            name: self._cluster.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        }
        self._driver = self._start("pretrain", *self._words(self.run_dir), f"runtime.address={self._cluster.address}")
        self._wait_for(lambda: self._step() > 0)
        suffered = []
        for number in range(count):
            goal = round((number + draw.random()) / (count + 0.5) * self.steps)
            self._wait_for(partial(self._has_reached, goal))
            time.sleep(draw.uniform(0, 1))
            suffered.append(self._part(dropped))
            print(json.dumps(asdict(suffered[-1])), flush=True)
        self._wait_for(self._has_ended, ended=True)
        if self._driver.returncode != 0:
            raise UserError(f"the parted run ended with {self._driver.returncode}: {self._said()}")
        return suffered

    def _has_reached(self, step: int) -> bool:
        self._another_has_joined()  # Ray may give a node up long after the network was back
        return self._step() >= step

    def _has_ended(self) -> bool:
        self._another_has_joined()
        return self._driver is not None and self._driver.poll() is not None

    def _another_has_joined(self) -> bool:
        """Replace the node if Ray has given it up; True if that was so. Looked for once a second."""
        if time.monotonic() < self._looked + 1.0 or self._node_lives():
            return False
        assert self._cluster is not None
        self._node = self._cluster.add_node(1, self._network)
        return True

    def _part(self, dropped: float) -> Partition:
        self._network.cut()
        time.sleep(dropped)
        reached = self._step()
        self._network.heal()
        begun = time.monotonic()
        node = "stayed"
        deadline = begun + PATIENCE_S
        while self._step() <= reached and self._step() < self.steps:
            if self._another_has_joined():
                node = "was given up, another one joined"
            self._restart_if_it_gave_up()
            if time.monotonic() > deadline:
                raise UserError(f"no further {PATIENCE_S:.0f} s after the network was back: {self._said()}")
            time.sleep(0.2)
        return Partition(self._apart, self._given_up, reached, round(time.monotonic() - begun, 1), node, "")

    def _node_lives(self) -> bool:
        assert self._cluster is not None
        assert self._node is not None
        states: list[dict[str, Any]] = self._cluster.state("nodes")
        self._looked = time.monotonic()
        return any(one["node_id"] == self._node.node_id and one["state"] == "ALIVE" for one in states)

    def _words(self, run_dir: Path) -> list[str]:
        return ["quickstart", *SETTINGS, *APART[self._apart], f"train.steps={self.steps}", f"run_dir={run_dir}"]


def _row(name: str, value: float) -> Row:
    return Row("partitions", name, value, None, None, "", peak_bytes(), machine())
