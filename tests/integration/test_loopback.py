"""Nothing that belongs to a local run listens where another machine could reach it."""

import contextlib
import ipaddress
import os
import re
import socket
import sys
from pathlib import Path

import psutil
import pytest
from real_runs import metrics_of
from waiting import wait_until

from mlpt.config import RuntimeConfig
from mlpt.runtime.cluster import ray_session

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net"),
    pytest.mark.timeout(900),
]


def listening(pid: int) -> dict[str, str]:
    """What listens, of the process and all below it, and where: {"name:port": address}."""
    found = {}
    inodes = _listening_inodes()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        for inode in _sockets_of(process.pid) & inodes.keys():
            with contextlib.suppress(psutil.NoSuchProcess):
                address, port = inodes[inode]
                found[f"{process.name()}:{port}"] = address
    return found


def _sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that a process has open."""
    found = set()
    with contextlib.suppress(OSError):  # it has ended
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile, as that of this very listing
                if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{number}")):
                    found.add(match[1])
    return found


def _listening_inodes() -> dict[str, tuple[str, int]]:
    """Inode -> (address, port) of each TCP socket of this machine that listens."""
    found = {}
    for family, file in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{file}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":  # TCP_LISTEN
                address, port = words[1].split(":")
                # Words of 32 bits, each in the order of this machine.
                raw = b"".join(
                    int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)
                )
                found[words[9]] = (socket.inet_ntop(family, raw), int(port, 16))
    return found


def reachable(found: dict[str, str]) -> dict[str, str]:
    """Those that another machine could reach."""

    def is_loopback(text: str) -> bool:
        address = ipaddress.ip_address(text)
        inner = getattr(address, "ipv4_mapped", None) or address
        return inner.is_loopback

    return {name: address for name, address in found.items() if not is_loopback(address)}


def test_the_list_of_sockets_knows_which_can_be_reached():
    with socket.create_server(("0.0.0.0", 0)) as all_of_ipv4, socket.create_server(("127.0.0.1", 0)) as inner:
        found = listening(os.getpid())
        names = {one: f"{psutil.Process().name()}:{one.getsockname()[1]}" for one in (all_of_ipv4, inner)}
        assert {names[all_of_ipv4], names[inner]} <= found.keys()
        assert names[all_of_ipv4] in reachable(found)
        assert names[inner] not in reachable(found)


@pytest.mark.slow
def test_no_process_of_a_local_run_can_be_reached_from_another_machine(mlpt, tiny, tmp_path):
    run = tmp_path / "run"
    process = mlpt.start("pretrain", *tiny, "train.steps=1000000", "runtime.num_workers=2", f"run_dir={run}")
    wait_until(lambda: metrics_of(run)[3:] or process.poll() is not None)
    assert process.poll() is None, mlpt.output()
    found = listening(process.pid)
    ray_own = {name.partition(":")[0] for name in found}
    assert {"gcs_server", "raylet"} <= ray_own
    assert sum(name.startswith("ray::") for name in found) >= 3  # two workers and the meta-learner
    assert reachable(found) == {}


def test_the_ray_of_nested_sweeps_with_its_dashboard_cannot_be_reached_either():
    with ray_session(RuntimeConfig(), cpus=1, nested=True):
        found = listening(os.getpid())
        assert len(found) >= 6
        assert reachable(found) == {}
