"""Where the nodes of a cluster run: what `tests.harness.cluster` asks of a network, and the plain loopback.

`tests.harness.netns.NetnsNetwork` is the other one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tests.harness.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence


class Network(Protocol):
    """Gives each node an address, ports, and a way to run there."""

    def host(self, name: str) -> str:
        """The address that the node listens on and is reached at."""
        ...

    def port(self, name: str, door: str) -> int:
        """A free port of that node for ``http``, ``grpc``, ``gossip`` or ``raft``; asked once for each."""
        ...

    def prefix(self, name: str) -> Sequence[str]:
        """What stands before the node's command line."""
        ...


class Loopback:
    """All nodes on 127.0.0.1, on free ports."""

    def host(self, name: str) -> str:
        return "127.0.0.1"

    def port(self, name: str, door: str) -> int:
        return free_port()

    def prefix(self, name: str) -> Sequence[str]:
        return ()
