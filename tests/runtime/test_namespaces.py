"""A node's own network: joined to this machine, cut without a word, joined again."""

import socket
import subprocess
import sys

import pytest

from mlpt.errors import UserError
from mlpt.runtime.namespaces import namespace

SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    while words := connection.recv(100):
        connection.sendall(words)
"""


@pytest.fixture
def network():
    """Skips where this machine allows none: it takes Linux, root, `ip` and `tc`."""
    made = namespace()
    try:
        network = made.__enter__()
    except UserError as error:
        pytest.skip(str(error))
    yield network
    made.__exit__(None, None, None)


def interfaces():
    return {name for _, name in socket.if_nameindex()}


def test_what_is_sent_while_the_link_is_cut_arrives_when_it_is_there_again(network):
    words = [*network.prefix, sys.executable, "-c", SERVER, network.inner]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline())
        with socket.create_connection((network.inner, port), timeout=60) as connection:
            connection.sendall(b"before")
            assert connection.recv(100) == b"before"
            network.cut()
            connection.sendall(b"meanwhile")
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):  # and neither end has heard of anything
                connection.recv(100)
            network.heal()
            connection.settimeout(60)
            assert connection.recv(100) == b"meanwhile"
    finally:
        server.kill()
        server.wait()


def test_it_leaves_nothing_behind(network):
    with namespace() as another:
        assert another.links[0] in interfaces()
        assert another.outer != network.outer
    assert another.links[0] not in interfaces()
    assert another.name not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
