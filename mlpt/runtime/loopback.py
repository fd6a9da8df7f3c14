"""A Ray of our own, and the process group of its workers, on the loopback: other machines cannot reach any of it.

Ray listens on the address that it takes for its node's, or on all of them; torch's store listens on all of them.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray._private import ray_constants
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that starts in this block listens on the loopback alone, with all that it starts.

    Ray does so by itself on macOS and Windows; `_node_ip_address=127.0.0.1` it would turn into an outer address.
    """
    interface = _interface()
    names = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}  # for workers, which inherit them
    earlier = {name: os.environ.get(name) for name in names}
    many_nodes = ray_constants.ENABLE_RAY_CLUSTER
    os.environ |= names
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = many_nodes
        for name, value in earlier.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


@dataclass
class LoopbackTorchConfig(TorchConfig):
    """torch.distributed among workers of one machine."""

    @property
    def backend_cls(self) -> type:
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    """As Ray's, but rank 0's store takes a socket that already listens, on the loopback."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        worker_group.execute(_set_torch_distributed_env_vars)
        port = worker_group.execute_single(0, _listen)
        timeout = timedelta(seconds=backend_config.timeout_s)
        how = {"backend": "nccl" if gpus else "gloo", "port": port, "world": len(worker_group), "timeout": timeout}
        ray.get([worker_group.execute_single_async(rank, _join, rank, **how) for rank in range(len(worker_group))])


_listening: list[socket.socket] = []  # rank 0's, between the two calls


def _listen() -> int:
    _listening[:] = [socket.create_server((LOOPBACK, 0))]
    port: int = _listening[0].getsockname()[1]
    return port


def _join(rank: int, backend: str, port: int, world: int, timeout: timedelta) -> None:
    serves = {"is_master": True, "master_listen_fd": _listening.pop().detach()} if rank == 0 else {}
    store = dist.TCPStore(LOOPBACK, port, world, timeout=timeout, wait_for_workers=False, **serves)  # type: ignore[arg-type]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def _interface() -> str:
    """The name of the loopback interface."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.family == socket.AF_INET and address.address == LOOPBACK for address in addresses):
            return name
    return "lo"
