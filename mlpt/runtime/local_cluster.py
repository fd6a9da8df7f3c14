"""A Ray cluster of processes on this machine, whose nodes can be added and killed one by one.

Ports and temporary folder are its own and it is ended by process ids, so that it leaves every other Ray alone.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from mlpt.errors import UserError
from mlpt.runtime.namespaces import Namespace

RAY = str(Path(sys.executable).parent / "ray")
_PORTS = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
_PATIENCE_S = 300.0
_STARTS = 8  # of a head or a node, which Ray gives up after 30 s on a busy machine, or when a port is taken before
_PORTS_FROM, _PORTS_TO = 20_000, 32_000  # systems take no port for an outgoing connection from these by themselves
_draw = random.SystemRandom()  # what has seeded Python's own is no reason to meet another process at its ports
# A node that is killed answers no health check: it is given up after about 5 s instead of half a minute.
_QUICK_TO_MISS_A_NODE = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class LocalCluster:
    """`ray start --head` with token authentication and the dashboard on the loopback; more nodes by `add_node`.

    host  this machine's address for the nodes: one that they reach where they have networks of their own.
    """

    def __init__(
        self,
        folder: Path,
        cpus: int = 0,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        port: int | None = None,
        host: str = "127.0.0.1",
    ):
        self.folder = folder
        self.temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # sockets below it have at most 107 letters
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(16))
        self.token.chmod(0o600)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            **_QUICK_TO_MISS_A_NODE,
            **(environment or {}),
        }
        self.nodes: list[Node] = []
        for attempt in range(_STARTS):
            ports = free_ports(len(_PORTS))
            self.port = ports[0] = port or ports[0]
            self.dashboard = f"http://127.0.0.1:{ports[1]}"
            self.address = f"{host}:{self.port}"
            named = [f"--{name}={number}" for name, number in zip(_PORTS, ports, strict=True)]
            self._head = self._start(
                *("--head", "--dashboard-host=127.0.0.1", f"--node-ip-address={host}", f"--temp-dir={self.temporary}"),
                *named,
                *options,
                cpus=cpus,
                environment={"TMPDIR": self.temporary},  # its dashboard leaves a folder there
            )
            try:
                self._wait(lambda: self._answers() or self._has_ended(), "its head does not answer")
                if not self._has_ended():
                    return
                if attempt == _STARTS - 1:
                    raise UserError(f"a local Ray head did not start; see {self.folder / 'cluster.txt'}")
            except BaseException:
                self.close()
                raise

    def add_node(self, cpus: int, network: Namespace | None = None) -> "Node":
        """Start a node with `cpus` logical CPUs, on this machine's network or its own; return once it is counted."""
        known = {node.node_id for node in self.nodes}
        found: list[str] = []

        def has_come() -> bool:
            alive = [node for node in self.state("nodes") if node["state"] == "ALIVE" and not node["is_head_node"]]
            found[:] = [node["node_id"] for node in alive if node["node_id"] not in known]
            return bool(found)

        for _ in range(_STARTS):
            process = self._start_node(cpus, network)
            try:
                self._wait(lambda process=process: has_come() or process.poll() is not None, "a node does not join")
            except BaseException:
                _end_tree(process)
                raise
            if found:
                self.nodes.append(Node(found[0], process))
                return self.nodes[-1]
        raise UserError(f"a node of a local Ray cluster does not start; see {self.folder / 'cluster.txt'}")

    def _start_node(self, cpus: int, network: Namespace | None) -> subprocess.Popen[bytes]:
        agent, metrics = free_ports(2)
        return self._start(
            *(f"--address={self.address}", f"--node-ip-address={network.inner if network else '127.0.0.1'}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
            cpus=cpus,
            environment={"GLOO_SOCKET_IFNAME": network.links[1]} if network else None,
            prefix=network.prefix if network else (),
        )

    def state(self, what: str) -> list[dict[str, Any]]:
        """Ray's own list of `nodes`, `placement_groups`, `actors`, ...; asked again where a busy machine gives none."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._state(what)
            except (OSError, TypeError):  # it does not answer in time, or has found nobody who knows
                if time.monotonic() > deadline or self._has_ended():
                    raise
                time.sleep(1.0)

    def _state(self, what: str) -> list[dict[str, Any]]:
        request = urllib.request.Request(f"{self.dashboard}/api/v0/{what}?limit=1000&detail=true")
        request.add_header("Authorization", f"Bearer {self.token.read_text()}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return found

    def close(self) -> None:
        """End the nodes, the head and everything that they started."""
        for node in self.nodes:
            node.kill()
        _end_tree(self._head)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _start(
        self,
        *options: str,
        cpus: int,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        memory = ("--object-store-memory=200000000", "--min-worker-port=0", "--max-worker-port=0")
        with open(self.folder / "cluster.txt", "ab") as output:
            return subprocess.Popen(
                [*prefix, RAY, "start", "--block", f"--num-cpus={cpus}", *memory, *options],
                env={**self.environment, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _has_ended(self) -> bool:
        return self._head.poll() is not None

    def _answers(self) -> bool:
        """Whether the dashboard answers and knows the head's own node, without which Ray gives its start up."""
        try:
            return any(node["is_head_node"] and node["state"] == "ALIVE" for node in self._state("nodes"))
        except (OSError, TypeError):
            return False

    def _wait(self, condition: Any, lack: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise UserError(f"the local Ray cluster failed: {lack} within {_PATIENCE_S:.0f} s")
            time.sleep(0.2)


class Node:
    """A node beside the head. `node_id` is Ray's."""

    def __init__(self, node_id: str, process: subprocess.Popen[bytes]):
        self.node_id = node_id
        self._process = process

    def kill(self) -> None:
        """SIGKILL to the node's raylet and everything below it, as when a machine goes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            node = psutil.Process(self._process.pid)
            _signal([node, *node.children(recursive=True)], signal.SIGKILL)
        self._process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, and that no outgoing connection takes before they are used."""
    with contextlib.ExitStack() as opened:
        found: list[int] = []
        while len(found) < count:
            port = _draw.randrange(_PORTS_FROM, _PORTS_TO)
            with contextlib.suppress(OSError):
                opened.enter_context(contextlib.closing(socket.socket())).bind(("", port))
                found.append(port)
        return found


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        head = psutil.Process(process.pid)
        started = [head, *head.children(recursive=True)]
        _signal(started, signal.SIGTERM)
        _, left = psutil.wait_procs(started, timeout=8)
        _signal(left, signal.SIGKILL)
    process.wait()


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
