"""A network of its own for a node of a local cluster, joined to this machine by one link, which can be cut.

Linux, with the rights of root and the tools `ip` and `tc`. What is sent while the link is cut is dropped without a
word, as by a switch that fails: no process hears of it.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlpt.errors import UserError

_DROP = ("root", "blackhole")  # a queue that keeps nothing
_NETWORK = "198.18"  # set aside for tests of networks
_SUBNETS = range(1, 250)


class Namespace:
    """`outer` is the address of this machine's end of the link, `inner` that of the other; `links` their interfaces."""

    def __init__(self, name: str, subnet: int):
        self.name = name
        self.outer, self.inner = (f"{_NETWORK}.{subnet}.{end}" for end in (1, 2))
        self.links = (f"{name}o", f"{name}i")

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words before a command that is to run in it."""
        return ("nsenter", f"--net=/var/run/netns/{self.name}")

    def cut(self) -> None:
        """Drop what is sent from now on, in both directions."""
        for where, link in zip(((), self.prefix), self.links, strict=True):
            _call(*where, "tc", "qdisc", "add", "dev", link, *_DROP)

    def heal(self) -> None:
        """Let everything through again."""
        for where, link in zip(((), self.prefix), self.links, strict=True):
            _call(*where, "tc", "qdisc", "del", "dev", link, *_DROP)


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A new one, which ends with the block. Raises `UserError` where this machine does not allow it."""
    used = _call("ip", "-o", "addr")
    subnet = next(number for number in _SUBNETS if f"{_NETWORK}.{number}." not in used)
    one = Namespace(f"mlpt{os.getpid() % 10**5}n{subnet}", subnet)  # an interface's name has 15 letters at most
    try:
        _call("ip", "netns", "add", one.name)
        outer, inner = one.links
        inside = ("ip", "-n", one.name)
        _call("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", one.name)
        _call("ip", "addr", "add", f"{one.outer}/30", "dev", outer)
        _call("ip", "link", "set", outer, "up")
        _call(*inside, "addr", "add", f"{one.inner}/30", "dev", inner)
        for link in (inner, "lo"):
            _call(*inside, "link", "set", link, "up")
        one.cut()  # to know that it can be
        one.heal()
        yield one
    finally:
        if Path(f"/var/run/netns/{one.name}").exists():
            # A link lives on with the connections of processes that have not ended yet; deleting it ends both ends.
            subprocess.run(["ip", "link", "del", one.links[0]], capture_output=True)
            subprocess.run(["ip", "netns", "del", one.name], capture_output=True)


def _call(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UserError(
            f"this machine cannot have a network of its own for a node: {' '.join(said.split())}"
        ) from error
