"""Ports of the clusters of this machine's processes."""

import socket
from pathlib import Path

import pytest

from mlpt.runtime.local_cluster import free_ports


def test_free_ports_can_be_listened_on_and_are_all_different():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.create_server(("127.0.0.1", port)) as server:
            assert server.getsockname()[1] == port


def test_no_outgoing_connection_takes_a_free_port_by_itself():
    kept = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not kept.is_file():
        pytest.skip("the system does not say which ports it takes for outgoing connections")
    first, last = map(int, kept.read_text().split())
    if (first, last) != (32768, 60999):
        pytest.skip(f"this machine takes {first} to {last}, not what Linux takes by itself")
    assert not any(first <= port <= last for port in free_ports(20))
